"""The text encoders of FLUX: T5 for the tokens, CLIP for one vector, and their tokenisers."""
