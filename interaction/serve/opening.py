"""What a connection does before its session is open, whatever its protocol."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Generator
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


async def first_message(link: Link, work: Coroutine[Any, Any, Any], limit_s: float) -> Any:  # noqa: ANN401
    """Waits for the first message of a client.

    Args:
      link: The connection.
      work: Takes the message.
      limit_s: Longest wait, s.

    Raises:
      ProtocolError: Nothing came in time, the server ends, or what `work` raises.
    """
    waiting = asyncio.create_task(work)
    ending = asyncio.create_task(link.house.draining.wait())
    try:
        await asyncio.wait([waiting, ending], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if ending.done():
            raise ProtocolError("session: the server restarts; try again soon", "server_full")
        raise ProtocolError("session: got nothing in time", "timeout")
    finally:
        for task in (waiting, ending):
            task.cancel()
        await asyncio.gather(waiting, ending, return_exceptions=True)


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
    except (OSError, RuntimeError, ValueError) as error:
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
