"""Small stand-ins for what cannot be shipped: a FLUX at a size that a laptop runs."""
