"""Image and label volumes: read lazily, resample, tell what their values mean."""
