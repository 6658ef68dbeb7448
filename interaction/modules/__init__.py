"""Linen modules that declare parameters and call pure functions."""
