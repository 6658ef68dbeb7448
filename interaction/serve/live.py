"""A connection of OpenAI's Live protocol: one WebSocket, one session of the engine."""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction.background.agent import BackgroundAgent
from interaction.engine import session_events
from interaction.engine.rows import FullError
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.serve.audio_formats import Decoder, Encoder
from interaction.serve.client_agent import ClientAgent
from interaction.serve.house import Card, House
from interaction.serve.limits import Rate
from interaction.serve.live_events import LiveEvents
from interaction.serve.live_messages import (
    AudioAppend,
    AudioMute,
    FrameAppend,
    ProtocolError,
    ServerDelegation,
    SessionClose,
    SessionConfig,
    SessionStart,
    SessionUpdate,
    TextAppend,
    error_event,
    event,
    new_id,
    read_event,
)
from interaction.serve.outbox import Outbox

_log = logging.getLogger("interaction.sessions")  # one line of JSON for each session
_EARLY_S = 0.04  # s by which a chunk is complete before the step that takes it
_USAGE_S = 2.0  # s between two reports of usage
_FLUSH_S = 2.0  # s for the last events
# WebSocket's codes of an end.
NORMAL, POLICY, BUSY, RESTART, BROKEN = 1000, 1008, 1013, 1012, 1011
CLOSED, EXPIRED, LOST = "close_requested", "expired", "connection_lost"  # the protocol's reasons
_RESTARTS, _OVERRUN, _ENDED = "server_restarts", "overrun", "ended"  # reasons of this server
_CODES = {CLOSED: NORMAL, EXPIRED: NORMAL, _RESTARTS: RESTART, _OVERRUN: POLICY, _ENDED: BROKEN}


class LiveConnection:
    """Serves one WebSocket from its first message to its last."""

    def __init__(self, house: House, socket: WebSocket, owner: str, fork: str = "") -> None:
        """Starts without a session.

        Args:
          house: The server's engine and sessions.
          socket: An accepted connection.
          owner: Identity of the client.
          fork: Id of the session to go on with; "" for a fresh one.
        """
        self._house, self._socket, self._owner, self._fork = house, socket, owner, fork
        self._outbox = Outbox(house.limits)
        self._rate = Rate(house.limits.messages_a_second)
        self._agent: ClientAgent | None = None  # if the client answers delegations
        self._muted = False
        self._decoder: Decoder | None = None
        self._ended, self._loop = asyncio.Event(), asyncio.get_running_loop()
        audio = house.engine.model.config.audio
        self._turn_s = audio.turn_samples / audio.sample_rate
        self._events = LiveEvents(self._outbox, self._turn_s)
        self._closing: str | None = None  # the client's id of its `session.close`

    async def run(self) -> None:
        """Serves the connection to its end."""
        try:
            start = await asyncio.wait_for(self._start(), self._house.limits.start_s)
            session, card = await self._open(start)
        except ProtocolError as error:
            self._house.metrics.refused(error.code)
            full = error.code in ("server_full", "session_limit_reached")
            await self._refuse(error, BUSY if full else POLICY)
            return
        except TimeoutError:
            await self._refuse(ProtocolError("session.start: got nothing in time"), POLICY)
            return
        except WebSocketDisconnect:
            return
        await self._serve(session, card, SessionConfig(**card.config), start.event_id)

    async def _refuse(self, error: ProtocolError, code: int) -> None:
        kind = "server_error" if code == BUSY else "invalid_request_error"
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.send_text(json.dumps(error_event(error, kind)))
            await self._socket.close(code)

    # The beginning.

    async def _start(self) -> SessionStart:
        first = await self._next()
        if not isinstance(first, SessionStart):
            raise ProtocolError(
                f"type: got {first.type!r}, wanted session.start as the first message",
                "session_not_started",
                "type",
                first.event_id or "",
            )
        return first

    async def _next(self) -> Any:  # noqa: ANN401
        """The next message of the client.

        Raises:
          WebSocketDisconnect: The client is gone.
          ProtocolError: The message is refused.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1006)
        text = message.get("text")
        if text is None:
            raise ProtocolError("message: got bytes, wanted JSON as text", "invalid_json")
        if not self._rate.take():
            raise ProtocolError("message: too many a second; send larger ones", "rate_limited")
        return read_event(text)

    async def _open(self, start: SessionStart) -> tuple[Session, Card]:
        house, config, name = self._house, start.session, new_id("session")
        house.check_room(self._owner)
        self._check(config, start.event_id or "")
        if house.draining.is_set():
            raise ProtocolError("session: the server restarts; try again soon", "server_full")
        try:
            if self._fork:
                session, old = await house.resume(self._fork, self._owner, self._make_agent)
                given = config.model_dump(exclude_unset=True)
                asked = old.config | {key: value for key, value in given.items() if key != "model"}
            else:
                asked = config.model_dump(exclude_unset=True)
                record = house.record_path(name) if config.store else None
                known = self._make_agent(asked), secrets.randbits(31), record
                session = await asyncio.to_thread(house.engine.open, *known)
        except FullError as error:
            raise ProtocolError(
                f"session: all {house.engine.free + len(house.engine.sessions)} are taken; try "
                "again later",
                "server_full",
            ) from error
        except (RuntimeError, ValueError) as error:
            raise ProtocolError(f"session: {error}", "session_failed") from error
        until = time.time() + house.limits.session_s
        card = Card(name, self._owner, asked, until)
        await house.admit(session, card)
        return session, card

    def _check(self, config: SessionConfig, event_id: str) -> None:
        """Refuses what this server cannot do."""
        if not config.model and not self._fork:
            raise ProtocolError(
                "session.model: got none, wanted the name of a model; any name means the one here",
                "missing_required_parameter",
                "session.model",
                event_id,
            )
        if isinstance(config.delegation, ServerDelegation):
            if self._house.make_agent is None:
                raise ProtocolError(
                    "session.delegation.type: got 'responses', wanted 'client': this server has no "
                    "background model",
                    "unsupported_parameter",
                    "session.delegation.type",
                    event_id,
                )
            if config.delegation.responses.tools:
                raise ProtocolError(
                    "session.delegation.responses.tools: got tools, wanted none: the background "
                    "model here has its own; use delegation 'client' for others",
                    "unsupported_parameter",
                    "session.delegation.responses.tools",
                    event_id,
                )

    def _make_agent(self, config: dict[str, Any]) -> BackgroundAgent | None:
        delegation = config.get("delegation") or {}
        if delegation.get("type") == "responses" and self._house.make_agent is not None:
            more = (delegation.get("responses") or {}).get("instructions")
            return self._house.make_agent(more or config.get("instructions") or "")
        self._events.by_server = False
        self._agent = ClientAgent(self._events.created, self._events.dropped)
        return self._agent

    # The talk.

    async def _serve(
        self, session: Session, card: Card, config: SessionConfig, event_id: str | None
    ) -> None:
        self._session, self._card, self._began = session, card, time.monotonic()
        self._config = config
        audio = self._house.engine.model.config.audio
        encoder = Encoder(config.format, audio.sample_rate)
        counted = self._house.metrics.watch(session)
        self._outbox.put(event("session.started", event_id, session=self._resource()))
        self._inform(config)
        self._events.begin(session.stats.turns)
        stops = session.on_reply(self._events.reply), session.subscribe(self._events.tell)
        stops += (session.subscribe(self._notice_end),)
        sender = asyncio.create_task(self._send(encoder))
        try:
            reason = await self._until_over(sender)
        finally:
            for stop in stops:
                stop()
        await self._leave(session, card, reason)
        counted()
        await self._say_goodbye(sender, reason)

    async def _until_over(self, sender: asyncio.Task) -> str:
        """Waits until the session is over; returns why."""

        async def wait_for(what: asyncio.Event) -> None:
            await what.wait()

        reasons: list[tuple[str, Coroutine]] = [
            (EXPIRED, asyncio.sleep(self._card.until - time.time())),
            (_RESTARTS, wait_for(self._house.draining)),
            (_OVERRUN, wait_for(self._outbox.overrun)),
            (_ENDED, wait_for(self._ended)),
        ]
        tasks = {asyncio.create_task(work): reason for reason, work in reasons}
        tasks |= {asyncio.create_task(self._listen()): "", sender: LOST}
        tasks[asyncio.create_task(self._report())] = LOST
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = next(iter(done))
            return tasks[first] or first.result()
        finally:
            for task in tasks:
                if task is not sender:
                    task.cancel()
            await asyncio.gather(
                *(task for task in tasks if task is not sender), return_exceptions=True
            )

    async def _listen(self) -> str:
        """Handles the client's messages; returns why they end."""
        while True:
            try:
                message = await asyncio.wait_for(self._next(), self._house.limits.silent_s)
                if isinstance(message, SessionClose):
                    self._closing = message.event_id
                    return CLOSED
                await self._handle(message)
            except ProtocolError as error:
                self._house.metrics.refused(error.code)
                self._outbox.put(error_event(error))
            except (WebSocketDisconnect, TimeoutError):
                return LOST

    async def _handle(self, message: Any) -> None:  # noqa: ANN401
        event_id = message.event_id or ""
        try:
            if isinstance(message, AudioAppend):
                self._hear(_decode(message.audio, "audio"))
            elif isinstance(message, AudioMute):
                self._muted = message.type.endswith(".mute")
                kind = f"session.input_audio.{'muted' if self._muted else 'unmuted'}"
                self._outbox.put(event(kind, message.event_id))
            elif isinstance(message, TextAppend):
                await self._append(message)
            elif isinstance(message, FrameAppend):
                self._show(_decode(message.frame, "frame"))
            elif isinstance(message, SessionUpdate):
                self._update(message)
            else:
                raise ProtocolError("type: the session has started already", "already_started")
        except ProtocolError as error:
            error.event_id = event_id
            raise
        except ValueError as error:
            raise ProtocolError(str(error), event_id=event_id) from error

    def _hear(self, data: bytes) -> None:
        audio = self._house.engine.model.config.audio
        if self._decoder is None:
            form = self._config.format
            width = 2 if form.kind == "audio/pcm" else 1
            said_s = len(data) / width / form.rate
            until = self._house.engine.due - _EARLY_S - time.monotonic() + said_s
            silence = round((-until % self._turn_s) * audio.sample_rate)
            self._decoder = Decoder(form, audio.turn_samples, audio.sample_rate, silence)
        for chunk in self._decoder.feed(data):
            with contextlib.suppress(ValueError):  # the session has just ended
                self._session.receive(None, np.zeros_like(chunk) if self._muted else chunk)

    def _show(self, data: bytes) -> None:
        size = self._house.engine.model.config.frame_size
        if len(data) != size * size * 3:
            raise ValueError(f"frame: got {len(data)} bytes, wanted RGB of {size}x{size} pixels")
        frame = np.frombuffer(data, np.uint8).reshape(size, size, 3)
        self._session.show(frame.astype(np.float32) / 255)

    async def _append(self, message: TextAppend) -> None:
        kind = message.type.split(".")[1]
        if message.delegation_id is not None:
            self._answer(message, kind)
        elif kind == "commentary":
            await asyncio.to_thread(self._house.engine.type, self._session, message.content)
        else:
            self._events.info(
                f"{kind}_not_read",
                "the live model reads no text that it does not say; the text was left out",
            )
        now = self._events.milliseconds(self._session.stats.turns)
        times = {"start_ms": now, "end_ms": now}
        self._outbox.put(event(f"session.{kind}.appended", message.event_id, **times))

    def _answer(self, message: TextAppend, kind: str) -> None:
        name = message.delegation_id or ""
        taken = False
        if self._agent is not None:
            take = self._agent.answer if kind == "commentary" else self._agent.think
            taken = take(name, message.content)
        if not taken:
            raise ProtocolError(
                f"delegation_id: got {name[:80]!r}, wanted a delegation that waits for the client",
                "delegation_not_found",
                "delegation_id",
            )

    def _update(self, message: SessionUpdate) -> None:
        kinds = {"responses": ServerDelegation}
        asked = message.session.get("delegation") or {}
        mine = "responses" if isinstance(self._config.delegation, ServerDelegation) else "client"
        known = set(message.session) <= {"delegation"} and isinstance(asked, dict)
        if not known or asked.get("type", mine) != mine:
            raise ProtocolError(
                f"session: got {sorted(message.session)}, wanted settings of the delegation that "
                "the session began with",
                "immutable_parameter",
                "session",
            )
        if mine in kinds and (asked.get("responses") or {}).get("tools"):
            raise ProtocolError(
                "session.delegation.responses.tools: the background model here has its own",
                "unsupported_parameter",
                "session.delegation.responses.tools",
            )
        self._outbox.put(event("session.updated", message.event_id, session=self._resource()))

    # What the client is told.

    def _notice_end(self, told: SessionEvent) -> None:
        """Ends the connection if the engine ended the session."""
        if told.kind == session_events.CLOSED:
            self._events.info("session_ended", told.text)
            self._loop.call_soon_threadsafe(self._ended.set)

    def _inform(self, config: SessionConfig) -> None:
        """Says what of the configuration has no effect here."""
        if config.model not in ("", self._house.name):
            self._events.info("model_substituted", f"the model here is {self._house.name!r}")
        if config.audio and config.audio.output and config.audio.output.voice:
            self._events.info("voice_substituted", "the model has one voice")
        server = isinstance(config.delegation, ServerDelegation)
        if config.instructions and not (server and self._house.reads_instructions):
            self._events.info("instructions_not_read", "neither model here reads instructions")
        if config.input:
            self._events.info(
                "input_not_read", "the live model was not trained on a history as text"
            )
        if self._fork:
            turns = self._session.stats.turns
            seconds = turns * self._turn_s
            self._events.info("session_resumed", f"{self._fork} goes on from {seconds:.1f} s")

    def _resource(self) -> dict[str, Any]:
        form = self._config.format
        config = {key: value for key, value in self._card.config.items() if value is not None}
        return config | {
            "id": self._card.id,
            "status": "active",
            "expires_at": int(self._card.until),
            "model": self._house.name,
            "audio": {"format": {"type": form.kind, "rate": form.rate}},
            "delegation": config.get("delegation") or {"type": "client"},
        }

    def _usage(self) -> dict[str, float]:
        return {"seconds": round(time.monotonic() - self._began)}

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_USAGE_S)
            stats = self._session.stats
            figures = {
                "step_ms": 1_000 * stats.step_s,
                "delay_ms": 1_000 * stats.delay_s,
                "missed": stats.missed,
                "lost": stats.lost,
            }
            told = {"usage": self._usage(), "interaction": figures}
            self._outbox.put(event("session.usage.updated", **told))

    async def _send(self, encoder: Encoder) -> None:
        """Sends what waits, until the client is gone or the task is cancelled."""
        told = 0
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            while True:
                item = await self._outbox.take()
                if item is None:
                    return
                if isinstance(item, np.ndarray):
                    if self._outbox.unheard > told:
                        self._house.metrics.unheard(self._outbox.unheard - told)
                        missing = 1_000 * (self._outbox.unheard - told) * self._turn_s
                        told = self._outbox.unheard
                        self._events.info(
                            "output_audio_lost", f"{missing:.0f} ms: you read too slowly"
                        )
                    delta = base64.b64encode(encoder.feed(item)).decode()
                    item = {"type": "session.output_audio.delta", "delta": delta}
                if item.get("type") != "session.output_audio.delta" or item["delta"]:
                    await self._socket.send_text(json.dumps(item))

    # The end.

    async def _leave(self, session: Session, card: Card, reason: str) -> None:
        limits = self._house.limits
        keep = limits.stored_s if card.config.get("store") else 0.0
        if reason in (LOST, _RESTARTS, _OVERRUN):
            keep = max(keep, limits.kept_s)
        await self._house.dismiss(session, card, reason, keep)
        stats = session.stats
        line = dataclasses.asdict(stats) | {
            "session": card.id[:16],  # not the whole of it, which lets one go on with it
            "client": card.owner,
            "reason": reason,
            "seconds": self._usage()["seconds"],
        }
        _log.info("%s", json.dumps(line))
        self._house.metrics.ended(reason)

    async def _say_goodbye(self, sender: asyncio.Task, reason: str) -> None:
        if reason == _RESTARTS:
            self._events.info(
                "server_restarts", f"go on with the session {self._card.id} in a moment"
            )
        told = reason if reason in (CLOSED, EXPIRED) else LOST
        fields = {"session": self._resource(), "usage": self._usage()}
        self._outbox.put(event("session.closed", self._closing, reason=told, **fields))
        self._outbox.put(None)
        if reason != LOST:
            await asyncio.wait([sender], timeout=_FLUSH_S)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        if reason != LOST:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await asyncio.wait_for(self._socket.close(_CODES[reason]), _FLUSH_S)


def _decode(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{field}: got no base64", param=field) from error
