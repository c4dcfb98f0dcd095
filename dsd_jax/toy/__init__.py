"""The toy world and the toy FLUX: the method at a size that runs on a laptop."""
