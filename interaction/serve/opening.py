"""What a connection does before its session is open, whatever its protocol."""

import contextlib
import json
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction.engine.rows import FullError
from interaction.serve.house import House
from interaction.serve.inbox import Inbox
from interaction.serve.messages import ProtocolError
from interaction.serve.outbox import Outbox

_POLICY, _BUSY = 1008, 1013  # WebSocket's codes of a refusal
_FULL = ("server_full", "session_limit_reached")


class Link(NamedTuple):
    """A connection."""

    house: House
    socket: WebSocket
    inbox: Inbox
    outbox: Outbox


@contextlib.contextmanager
def engine_errors() -> Generator[None]:
    """Turns the engine's errors into those of a protocol.

    Raises:
      ProtocolError: All places are taken, or the session could not be opened.
    """
    try:
        yield
    except FullError as error:
        text = "session: all places are taken; try again later"
        raise ProtocolError(text, "server_full") from error
    except (RuntimeError, ValueError) as error:
        raise ProtocolError(f"session: {error}", "session_failed") from error


async def refuse(
    link: Link, error: ProtocolError, event: Callable[[ProtocolError, str], dict[str, Any]]
) -> None:
    """Tells a client why it gets no session, and closes its connection.

    Args:
      link: The connection.
      error: Why.
      event: Makes the protocol's event of an error and its type.
    """
    link.house.metrics.refused(error.code)
    full = error.code in _FULL
    kind = "server_error" if full else "invalid_request_error"
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await link.socket.send_text(json.dumps(event(error, kind)))
        await link.socket.close(_BUSY if full else _POLICY)
