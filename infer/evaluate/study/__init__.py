"""User studies: people rate images of several methods without knowing which made which."""
