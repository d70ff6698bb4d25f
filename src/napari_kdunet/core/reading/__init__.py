"""From a file, folder, address or array to a lazy array with axes ZYX and the voxel size that it states."""
