"""`dsd quickstart` runs the whole method on toy weights and scores the result."""
