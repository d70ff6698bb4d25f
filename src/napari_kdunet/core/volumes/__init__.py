"""Image and label volumes: open, read lazily, resample."""
