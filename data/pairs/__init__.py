"""Pairs of one subject on disk."""
