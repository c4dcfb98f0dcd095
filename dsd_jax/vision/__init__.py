"""Vision transformers: one module for DINO, DINOv2, CLIP and SigLIP, and the pictures they take."""
