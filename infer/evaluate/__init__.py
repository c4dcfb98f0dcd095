"""Scores of customised images: what they keep of the reference, and what they change."""
