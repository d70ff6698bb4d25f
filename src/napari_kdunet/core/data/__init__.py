"""What a training sees: slices, patches, augmentation, teachers, validation."""
