"""What the Compare panel is made of."""
