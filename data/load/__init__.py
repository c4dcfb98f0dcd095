"""Loads pairs from disk as batches on a mesh."""
