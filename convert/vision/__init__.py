"""Vision transformers as transformers saves them."""
