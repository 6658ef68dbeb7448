"""What a client sends: its messages, one at a time, at a bounded rate."""

from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction.serve.limits import Rate
from interaction.serve.messages import ProtocolError


class Inbox:
    """The messages of a WebSocket."""

    def __init__(
        self, socket: WebSocket, read: Callable[[str], Any], messages_a_second: float
    ) -> None:
        """Starts to receive.

        Args:
          socket: An accepted connection.
          read: Reads a message, or raises `ProtocolError`.
          messages_a_second: The most that are taken.
        """
        self._socket, self._read, self._rate = socket, read, Rate(messages_a_second)

    async def next(self) -> Any:  # noqa: ANN401
        """The next message.

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
        return self._read(text)
