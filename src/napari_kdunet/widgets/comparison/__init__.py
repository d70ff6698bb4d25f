"""The parts of the Compare panel."""
