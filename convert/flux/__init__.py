"""Tables of the FLUX transformer."""
