"""How the toy FLUX that ships with the package is made."""
