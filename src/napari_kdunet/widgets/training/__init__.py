"""The parts of the Train and Distil panels."""
