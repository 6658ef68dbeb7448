"""What a client sends: its messages, one at a time, at a bounded rate."""

from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction.serve.limits import Rate
from interaction.serve.live_messages import ProtocolError, read_event


class Inbox:
    """The messages of a WebSocket."""

    def __init__(self, socket: WebSocket, a_second: float) -> None:
        """Takes an accepted connection, and the most messages a second."""
        self._socket, self._rate = socket, Rate(a_second)

    async def next(self) -> Any:  # noqa: ANN401
        """The next message, one of `live_messages.ClientEvent`.

        Raises:
          WebSocketDisconnect: The client is gone.
          ProtocolError: The message is refused.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1006)
        if not self._rate.take():
            raise ProtocolError("message: too many a second; send larger ones", "rate_limited")
        text = message.get("text")
        if text is None:
            raise ProtocolError("message: got bytes, wanted JSON as text", "invalid_json")
        return read_event(text)
