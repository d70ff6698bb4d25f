"""The parts of the Segment panel."""
