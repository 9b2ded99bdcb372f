"""Pure functions from values to lines of text; tested without an app."""
