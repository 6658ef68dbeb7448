"""OpenAI's Live protocol over WebSocket."""
