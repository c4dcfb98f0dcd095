"""What FLUX reads: a T5 encoder for the tokens, CLIP for one vector, and their tokenisers."""
