"""Parts shared by several panels: layers, models, forms, previews."""
