"""The same models in PyTorch, written independently, for comparison."""
