"""A connection of OpenAI's Realtime protocol, from its first message to its session."""

import asyncio
import contextlib
import json
import secrets
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction.engine.session import Session
from interaction.serve.house import Card, House
from interaction.serve.inbox import Inbox
from interaction.serve.messages import ProtocolError, new_id
from interaction.serve.opening import Link, engine_errors, first_message, refuse
from interaction.serve.outbox import Outbox
from interaction.serve.realtime.realtime_agent import RealtimeAgent
from interaction.serve.realtime.realtime_messages import (
    SessionUpdate,
    Settings,
    error_event,
    event,
    read_event,
)
from interaction.serve.realtime.realtime_session import RealtimeSession


class RealtimeConnection:
    """Serves one WebSocket.

    The client is told of its session at once, which is opened with the first message: that may
    configure it.
    """

    def __init__(self, house: House, socket: WebSocket, owner: str, model: str = "") -> None:
        """Starts without a session.

        Args:
          house: The server's engine and sessions.
          socket: An accepted connection.
          owner: Identity of the client.
          model: The name that the client gave; any means the model here.
        """
        self._house = house
        inbox = Inbox(socket, read_event, house.limits.messages_a_second)
        self._link = Link(house, socket, inbox, Outbox(house.limits))
        config = {"model": model} if model else {}
        until = time.time() + house.limits.session_s
        self._card = Card(new_id("sess"), owner, config, until, resumable=False)

    async def run(self) -> None:
        """Serves the connection to its end."""
        try:
            if not self._house.engine.free:
                raise ProtocolError("session: all places are taken; try again later", "server_full")
            settings, card = Settings(self._card.config), self._card
            told = settings.describe(card.id, card.until, self._house.name)
            await self._send(event("session.created", session=told))
            limit_s = self._house.limits.silent_s
            first = await first_message(self._link, self._first(settings), limit_s)
            asked = settings
            if isinstance(first, SessionUpdate):
                asked = settings.update(first.session)
            session, agent = await self._open(asked.instructions)
        except ProtocolError as error:
            await refuse(self._link, error, error_event)
        except WebSocketDisconnect:
            pass  # before anything began
        else:
            await RealtimeSession(self._link, session, self._card, agent, asked.instructions).run(
                first
            )

    async def _first(self, settings: Settings) -> Any:  # noqa: ANN401
        """The first message that is not refused."""
        while True:
            message = None
            try:
                message = await self._link.inbox.next()
                if isinstance(message, SessionUpdate):
                    settings.update(message.session)
                return message
            except ProtocolError as error:
                if message is not None:
                    error.event_id = message.event_id or ""
                self._house.metrics.refused(error.code)
                await self._send(error_event(error))

    async def _open(self, instructions: str) -> tuple[Session, RealtimeAgent]:
        house = self._house
        with house.room(self._card.owner):
            with engine_errors():
                server = None if house.make_agent is None else house.make_agent(instructions)
                agent = RealtimeAgent(server)
                seed = secrets.randbits(31)
                session = await asyncio.to_thread(house.engine.open, agent, seed, None)
            await house.admit(session, self._card)
        return session, agent

    async def _send(self, told: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the client is gone, as the next message tells
            await self._link.socket.send_text(json.dumps(told))
