"""Modules of the transformer of the pair of models that was released first."""
