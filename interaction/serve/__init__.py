"""Servers of live sessions: OpenAI's Live protocol over WebSocket, and a page with a microphone."""
