"""What a client of the Live protocol is told: replies and events of its session, as messages."""

from typing import Any

import numpy as np

from interaction.engine import session_events
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.serve.live.live_messages import event
from interaction.serve.outbox import Outbox, Speech
from interaction.types import Reply

_AUDIO = "session.output_audio.delta"
INFOS = {
    session_events.AUDIO_LOST: "input_audio_lost",
    session_events.MICROPHONE: "input_audio_level",
    session_events.DEADLINE_MISSED: "deadline_missed",
    session_events.FAILED: "delegation_failed",
}
_TRANSCRIPTS = {
    session_events.USER_TRANSCRIPT: "session.input_transcript.delta",
    session_events.MODEL_TEXT: "session.output_transcript.delta",
}
_WORK = {  # events of the server's agent -> events of a Responses model
    session_events.ASKED: "response.created",
    session_events.TOOL_CALL: "response.output_item.added",
    session_events.TOOL_RESULT: "response.output_item.done",
    session_events.DONE: "response.completed",
    session_events.FAILED: "response.failed",
    session_events.CANCELLED: "response.incomplete",
}


class LiveEvents:
    """Puts messages about a session into an outbox; called by the engine's thread.

    The client's clock begins with the first reply that it is sent.
    """

    def __init__(self, outbox: Outbox, turn_s: float) -> None:
        """Starts before the session.

        Args:
          outbox: Where messages go.
          turn_s: Length of a micro-turn, s.
        """
        self._outbox, self._turn_s = outbox, turn_s
        self.by_server = True  # whether the server answers delegations
        self._session: Session | None = None  # None before `begin`
        self._first: int | None = None  # the first micro-turn that the client hears
        self._early: list[tuple[str, str]] = []  # delegations that were asked again before `begin`

    def begin(self, session: Session) -> None:
        """The client knows of its session now."""
        self._session = session
        for early in self._early:
            self.created(*early)

    def reply(self, reply: Reply) -> None:
        """Passes on the speech of a micro-turn, float32[turn_samples] in [-1, 1]."""
        if self._first is None:
            self._first = self._turn
        self._outbox.put(Speech(np.asarray(reply.audio), {"type": _AUDIO}))

    @property
    def _turn(self) -> int:
        """The number of the current micro-turn."""
        return 0 if self._session is None else self._session.stats.turns

    @property
    def now_ms(self) -> int:
        """The time on the client's clock, ms."""
        return self._milliseconds(self._turn)

    def created(self, name: str, request: str) -> None:
        """A delegation waits for the client; the protocol's event is without its words."""
        if self._session is None:
            self._early.append((name, request))
        else:
            self._outbox.put(self._delegation(name, "client", self._turn))
            self.info("delegation_request", f"{name}: {request}")

    def dropped(self, name: str) -> None:
        """The client's answer to a delegation is no longer wanted."""
        self.info("delegation_cancelled", name)

    def info(self, code: str, message: str) -> None:
        """A notice for the client."""
        self._outbox.put(event("info", code=code, message=message))

    def tell(self, told: SessionEvent) -> None:
        """Passes on an event of the session."""
        if told.kind in _TRANSCRIPTS:
            start, end = self._milliseconds(told.turn), self._milliseconds(told.turn + 1)
            kind = _TRANSCRIPTS[told.kind]
            self._outbox.put(event(kind, delta=told.text, start_ms=start, end_ms=end))
        if told.kind in INFOS:
            self.info(INFOS[told.kind], told.text)
        if told.kind in _WORK and self.by_server:
            self._tell_work(told)

    def _tell_work(self, told: SessionEvent) -> None:
        name, response = f"delegation_{told.delegation}", f"response_{told.delegation}"
        inner: dict[str, Any] = {"type": _WORK[told.kind]}
        if told.kind in (session_events.TOOL_CALL, session_events.TOOL_RESULT):
            inner["item"] = _tool_item(told)
        else:
            inner["response"] = {"id": response, "object": "response", "output": []}
        if told.kind == session_events.ASKED:
            made = self._delegation(name, "responses", told.turn)
            made["delegation"]["response_id"] = response
            self._outbox.put(made)
            inner["response"]["metadata"] = {"request": told.text}
        if told.kind == session_events.FAILED:
            inner["response"]["error"] = {"code": "server_error", "message": told.text}
        self._outbox.put(event("response.event", delegation_id=name, event=inner))

    def _delegation(self, name: str, target: str, turn: int) -> dict[str, Any]:
        made = {"id": name, "target": target, "type": "delegation"}
        offset = self._milliseconds(turn)
        return event("session.delegation.created", delegation=made, offset_ms=offset)

    def _milliseconds(self, turn: int) -> int:
        """When a micro-turn begins on the client's clock, ms."""
        first = turn if self._first is None else self._first
        return round(1_000 * max(turn - first, 0) * self._turn_s)


def _tool_item(told: SessionEvent) -> dict[str, Any]:
    """A tool that the server's agent called, as an item of a Responses model."""
    fields = {"id": f"tool_{told.delegation}", "type": "mcp_call", "server_label": "interaction"}
    if told.kind == session_events.TOOL_CALL:
        return fields | {"status": "in_progress", "arguments": told.text}
    return fields | {"status": "completed", "output": told.text}
