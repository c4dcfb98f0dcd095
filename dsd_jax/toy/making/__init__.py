"""Makes the toy FLUX that ships with the package."""
