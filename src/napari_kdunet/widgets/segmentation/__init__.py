"""What the Segment panel is made of."""
