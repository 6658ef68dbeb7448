"""Servers of live sessions: OpenAI's Live and Realtime protocols over WebSocket, and a page."""
