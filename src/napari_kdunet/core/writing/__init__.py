"""Results to disk: slices computed ahead, written whole or not at all, resumable."""
