"""Write volumes to TIFF or OME-Zarr: slices prefetched, the result complete or not there at all, resumable."""
