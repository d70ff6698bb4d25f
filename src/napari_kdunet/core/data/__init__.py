"""The data of a training: slices, patches, augmentation, teachers, validation."""
