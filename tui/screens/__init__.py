"""Whole screens; the stylesheet of each lies beside it."""
