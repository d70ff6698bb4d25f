"""The training loop, its losses, events and checkpoints."""
