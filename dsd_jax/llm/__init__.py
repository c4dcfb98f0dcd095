"""Paid questions to language models: each is asked once, and its answer kept before it is read."""
