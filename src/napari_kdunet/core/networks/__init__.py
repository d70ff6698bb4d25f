"""The k-Unet and the model file."""
