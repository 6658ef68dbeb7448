"""A connection of OpenAI's Live protocol, from its first message to its session."""

import asyncio
import secrets
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction.background.agent import BackgroundAgent
from interaction.engine.session import Session
from interaction.serve.client_agent import ClientAgent
from interaction.serve.house import Card, House
from interaction.serve.inbox import Inbox
from interaction.serve.live.live_events import LiveEvents
from interaction.serve.live.live_messages import (
    ServerDelegation,
    SessionConfig,
    SessionStart,
    error_event,
    read_event,
)
from interaction.serve.live.live_session import LiveSession
from interaction.serve.messages import ProtocolError, new_id
from interaction.serve.opening import Link, engine_errors, first_message, refuse
from interaction.serve.outbox import Outbox


class LiveConnection:
    """Serves one WebSocket."""

    def __init__(self, house: House, socket: WebSocket, owner: str, fork: str = "") -> None:
        """Starts without a session.

        Args:
          house: The server's engine and sessions.
          socket: An accepted connection.
          owner: Identity of the client.
          fork: Id of the session to go on with; "" for a fresh one.
        """
        self._house, self._owner, self._fork = house, owner, fork
        inbox = Inbox(socket, read_event, house.limits.messages_a_second)
        self._link = Link(house, socket, inbox, Outbox(house.limits))
        self._events = LiveEvents(self._link.outbox, house.turn_s)
        self._agent: ClientAgent | None = None  # if the client answers delegations

    async def run(self) -> None:
        """Serves the connection to its end."""
        try:
            start = await first_message(self._link, self._start(), self._house.limits.start_s)
            session, card = await self._open(start)
        except ProtocolError as error:
            await refuse(self._link, error, error_event)
        except WebSocketDisconnect:
            pass  # before anything began
        else:
            known = self._link, self._events, session, card, self._agent
            await LiveSession(*known, start.event_id, self._fork).run()

    async def _start(self) -> SessionStart:
        first = await self._link.inbox.next()
        if not isinstance(first, SessionStart):
            raise ProtocolError(
                f"type: got {first.type!r}, wanted session.start as the first message",
                "session_not_started",
                "type",
                first.event_id or "",
            )
        return first

    async def _open(self, start: SessionStart) -> tuple[Session, Card]:
        house, config, name = self._house, start.session, new_id("session")
        self._check(config, start.event_id or "")
        asked = config.model_dump(exclude_unset=True)
        with house.room(self._owner):
            session, asked = await self._take(asked, name)
            card = Card(name, self._owner, asked, time.time() + house.limits.session_s)
            await house.admit(session, card)
        return session, card

    async def _take(self, asked: dict[str, Any], name: str) -> tuple[Session, dict[str, Any]]:
        """Opens a session of this id as a client asked; returns it and its configuration."""
        house = self._house
        with engine_errors():
            if self._fork:
                asked.pop("model", None)  # a fork keeps its model
                known = self._fork, self._owner, lambda old: self._make_agent(old | asked)
                session, old = await house.resume(*known)
                asked = old.config | asked
            else:
                record = house.record_path(name) if asked.get("store") else None
                given = self._make_agent(asked), secrets.randbits(31), record
                session = await asyncio.to_thread(house.engine.open, *given)
        return session, asked

    def _check(self, config: SessionConfig, event_id: str) -> None:
        """Refuses what this server cannot do."""

        def refuse(param: str, text: str, code: str = "unsupported_parameter") -> None:
            raise ProtocolError(f"{param}: {text}", code, param, event_id)

        if not config.model and not self._fork:
            text = "got none, wanted the name of a model; any name means the one here"
            refuse("session.model", text, "missing_required_parameter")
        if config.video and not self._house.engine.frames:
            text = "got true, wanted false: the model here does not see"
            refuse("session.interaction.video", text)
        if isinstance(config.delegation, ServerDelegation):
            if self._house.make_agent is None:
                text = "got 'responses', wanted 'client': there is no background model here"
                refuse("session.delegation.type", text)
            if config.delegation.responses.tools:
                text = (
                    "got tools, wanted none: the background model here has its own; use delegation "
                    "'client' for others"
                )
                refuse("session.delegation.responses.tools", text)

    def _make_agent(self, config: dict[str, Any]) -> BackgroundAgent | None:
        SessionConfig(**config)  # one that was kept may be of another version
        delegation = config.get("delegation") or {}
        if delegation.get("type") == "responses" and self._house.make_agent is not None:
            more = (delegation.get("responses") or {}).get("instructions")
            return self._house.make_agent(more or config.get("instructions") or "")
        self._events.by_server = False
        self._agent = ClientAgent(self._events.created, self._events.dropped)
        return self._agent
