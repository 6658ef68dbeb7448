"""The same models in PyTorch, written on their own, to compare with."""
