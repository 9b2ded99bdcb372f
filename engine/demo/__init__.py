"""The built-in model: how it was made, and its files."""
