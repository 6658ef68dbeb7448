"""Linen leaves: they declare parameters and call pure functions."""
