"""Paid questions to language models: asked once, kept before they are read, counted."""
