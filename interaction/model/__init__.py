"""The transformer with its inputs and outputs, and the streaming step."""
