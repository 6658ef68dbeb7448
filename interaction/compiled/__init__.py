"""Costs of a model, and readers of compiled programs."""
