"""A session of the Live protocol: takes its client's messages, and tells it what happens."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from interaction.engine.session import Session
from interaction.serve.audio_formats import Format
from interaction.serve.client_agent import ClientAgent
from interaction.serve.house import Card
from interaction.serve.live.live_events import LiveEvents
from interaction.serve.live.live_messages import (
    AudioAppend,
    AudioMute,
    FrameAppend,
    ServerDelegation,
    SessionClose,
    SessionConfig,
    SessionUpdate,
    TextAppend,
    error_event,
    event,
)
from interaction.serve.messages import ProtocolError, decode_base64
from interaction.serve.opening import Link
from interaction.serve.session_connection import (
    CLOSED,
    EXPIRED,
    LOST,
    OVERRUN,
    RESTARTS,
    SILENT,
    SessionConnection,
)


class LiveSession(SessionConnection):
    """An open session and its connection."""

    def __init__(
        self,
        link: Link,
        events: LiveEvents,
        session: Session,
        card: Card,
        agent: ClientAgent | None,
        event_id: str | None,
        fork: str = "",
    ) -> None:
        """Takes over a connection whose session was just opened.

        Args:
          link: The connection.
          events: Puts messages about the session into the outbox.
          session: The session.
          card: What the house knows of it.
          agent: Passes delegations to the client; None if the server answers them.
          event_id: The client's id of its first message.
          fork: Id of the session that this one goes on from.
        """
        super().__init__(link, session, card)
        self._events, self._agent = events, agent
        self._config = SessionConfig(**card.config)
        self._event_id, self._fork = event_id, fork
        self._muted = False
        self._closing: str | None = None  # the client's id of its `session.close`

    @property
    def formats(self) -> tuple[Format, Format]:
        """See `SessionConnection`."""
        return self._config.format, self._config.format

    def begin(self) -> list[Callable[[], object]]:
        """See `SessionConnection`."""
        self.outbox.put(event("session.started", self._event_id, session=self._resource()))
        self._say_what_has_no_effect()
        self._events.begin(self.session)
        reply, tell = self._events.reply, self._events.tell
        return [self.session.on_reply(reply), self.session.subscribe(tell)]

    async def handle(self, message: Any) -> str | None:  # noqa: ANN401
        """See `SessionConnection`."""
        if isinstance(message, SessionClose):
            self._closing = message.event_id
            return CLOSED
        if isinstance(message, AudioAppend):
            self.hear(decode_base64(message.audio, "audio"), muted=self._muted)
        elif isinstance(message, AudioMute):
            self._muted = message.type.endswith(".mute")
            kind = f"session.input_audio.{'muted' if self._muted else 'unmuted'}"
            self.outbox.put(event(kind, message.event_id))
        elif isinstance(message, TextAppend):
            await self._append(message)
        elif isinstance(message, FrameAppend):
            self._show(decode_base64(message.frame, "frame"))
        elif isinstance(message, SessionUpdate):
            self._update(message)
        else:
            raise ProtocolError("type: the session has started already", "already_started")
        return None

    def _show(self, data: bytes) -> None:
        if not self._config.video:
            raise ValueError(
                "frame: got a frame in a session without video; start it with "
                "`interaction: {video: true}`"
            )
        size = self.house.engine.model.config.frame_size
        if len(data) != size * size * 3:
            raise ValueError(f"frame: got {len(data)} bytes, wanted RGB of {size}x{size} pixels")
        frame = np.frombuffer(data, np.uint8).reshape(size, size, 3)
        self.session.show(frame.astype(np.float32) / 255)

    async def _append(self, message: TextAppend) -> None:
        kind = message.type.split(".")[1]
        if message.delegation_id is not None:
            self._answer(message.delegation_id, kind, message.content)
        elif kind == "commentary":
            await asyncio.to_thread(self.house.engine.type, self.session, message.content)
        else:
            text = "the live model reads no text that it does not say; the text was left out"
            self.inform(f"{kind}_not_read", text)
        now = self._events.now_ms
        self.outbox.put(
            event(f"session.{kind}.appended", message.event_id, start_ms=now, end_ms=now)
        )

    def _answer(self, name: str, kind: str, text: str) -> None:
        taken = False
        if self._agent is not None:
            take = self._agent.answer if kind == "commentary" else self._agent.think
            taken = take(name, text)
        if not taken:
            raise ProtocolError(
                f"delegation_id: got {name[:80]!r}, wanted a delegation that waits for the client",
                "delegation_not_found",
                "delegation_id",
            )

    def _update(self, message: SessionUpdate) -> None:
        server = isinstance(self._config.delegation, ServerDelegation)
        mine = "responses" if server else "client"
        asked = message.session.get("delegation") or {}
        known = set(message.session) <= {"delegation"} and isinstance(asked, dict)
        if not known or asked.get("type", mine) != mine:
            raise ProtocolError(
                f"session: got {sorted(message.session)}, wanted settings of the delegation that "
                "the session began with",
                "immutable_parameter",
                "session",
            )
        settings = asked.get("responses")
        if isinstance(settings, dict) and settings.get("tools"):
            param = "session.delegation.responses.tools"
            text = f"{param}: the background model here has its own"
            raise ProtocolError(text, "unsupported_parameter", param)
        self.outbox.put(event("session.updated", message.event_id, session=self._resource()))

    # What the client is told.

    def refuse(self, error: ProtocolError) -> None:
        """See `SessionConnection`."""
        self.outbox.put(error_event(error))

    def inform(self, code: str, message: str) -> None:
        """See `SessionConnection`."""
        self._events.info(code, message)

    def _say_what_has_no_effect(self) -> None:
        config = self._config
        if config.model not in ("", self.house.name):
            self.inform("model_substituted", f"the model here is {self.house.name!r}")
        if config.audio and config.audio.output and config.audio.output.voice:
            self.inform("voice_substituted", "the model has one voice")
        server = isinstance(config.delegation, ServerDelegation)
        if config.instructions and not (server and self.house.reads_instructions):
            self.inform("instructions_not_read", "neither model here reads instructions")
        if config.input:
            self.inform("input_not_read", "the live model reads no history as text")
        if self._fork:
            seconds = self.session.stats.turns * self.house.turn_s
            self.inform("session_resumed", f"{self._fork} goes on from {seconds:.1f} s")

    def _resource(self) -> dict[str, Any]:
        form = self._config.format
        config = {key: value for key, value in self.card.config.items() if value is not None}
        return config | {
            "id": self.card.id,
            "status": "active",
            "expires_at": int(self.card.until),
            "model": self.house.name,
            "audio": {"format": {"type": form.kind, "rate": form.rate}},
            "delegation": config.get("delegation") or {"type": "client"},
        }

    def report(self) -> None:
        """See `SessionConnection`."""
        stats = self.session.stats
        figures = {  # for the page; not of OpenAI's protocol
            "step_ms": 1_000 * stats.step_s,
            "delay_ms": 1_000 * stats.delay_s,
            "missed": stats.missed,
            "lost": stats.lost,
        }
        told = {"usage": {"seconds": self.seconds}, "interaction": figures}
        self.outbox.put(event("session.usage.updated", **told))

    # The end.

    def left(self, code: int) -> str:
        """See `SessionConnection`; without `session.close` the client may come back."""
        return LOST

    def keep_s(self, reason: str) -> float:
        """See `SessionConnection`."""
        limits = self.house.limits
        keep = limits.stored_s if self.card.config.get("store") else 0.0
        if reason in (LOST, RESTARTS, OVERRUN, SILENT):
            keep = max(keep, limits.kept_s)
        return keep

    def farewell(self, reason: str) -> None:
        """See `SessionConnection`."""
        if reason == RESTARTS:
            text = f"go on with the session {self.card.id} in a moment"
            self.inform("server_restarts", text)
        told = reason if reason in (CLOSED, EXPIRED) else LOST
        fields = {"session": self._resource(), "usage": {"seconds": self.seconds}}
        self.outbox.put(event("session.closed", self._closing, reason=told, **fields))
