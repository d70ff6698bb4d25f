"""From a model and a volume to lazy probabilities or labels."""
