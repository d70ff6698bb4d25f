"""Write volumes to TIFF, OME-Zarr, HDF5 or MRC: slices are prefetched, and a result is there only when complete."""
