"""What the Train and Distil panels are made of."""
