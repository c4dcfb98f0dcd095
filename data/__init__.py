"""Pairs of one subject: made, judged, stored and loaded."""
