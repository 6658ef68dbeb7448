"""Released models on disk."""
