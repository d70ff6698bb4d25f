"""What several panels share: layers, models, forms, previews."""
