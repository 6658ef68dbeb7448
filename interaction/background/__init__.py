"""Whoever reasons behind a conversation, and its tools."""
