"""OpenAI's Realtime protocol over WebSocket: the same stream, shown as turns."""
