"""What several panels share: layers, models, workers, notifications."""
