"""A session of the Live protocol: hears its client, and tells it what happens, until it is over."""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import json
import logging
import time
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from interaction import logs
from interaction.engine import session_events
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.serve.audio_formats import PCM, Decoder, Encoder
from interaction.serve.client_agent import ClientAgent
from interaction.serve.house import Card, House
from interaction.serve.inbox import Inbox
from interaction.serve.live_events import LiveEvents
from interaction.serve.live_messages import (
    AudioAppend,
    AudioMute,
    FrameAppend,
    ProtocolError,
    ServerDelegation,
    SessionClose,
    SessionConfig,
    SessionUpdate,
    TextAppend,
    error_event,
    event,
)
from interaction.serve.outbox import Outbox

_log = logging.getLogger("interaction.sessions")  # one line of JSON for each session
_EARLY_S = 0.04  # s by which a chunk is complete before the step that takes it
_USAGE_S = 2.0  # s between two reports of usage
_FLUSH_S = 2.0  # s for the last events
# Why a session ends: the protocol's reasons, then those of this server.
CLOSED, EXPIRED, LOST = "close_requested", "expired", "connection_lost"
RESTARTS, OVERRUN, SILENT, ENDED = "server_restarts", "overrun", "silent", "ended"
# WebSocket's codes of these ends.
_CODES = {CLOSED: 1000, EXPIRED: 1000, RESTARTS: 1012, OVERRUN: 1008, SILENT: 1008, ENDED: 1011}


class LiveSession:
    """An open session and its connection."""

    def __init__(
        self,
        house: House,
        socket: WebSocket,
        inbox: Inbox,
        outbox: Outbox,
        events: LiveEvents,
        session: Session,
        card: Card,
        agent: ClientAgent | None,
    ) -> None:
        """Takes over a connection whose session was just opened.

        Args:
          house: The server's engine and sessions.
          socket: The connection.
          inbox: Its messages.
          outbox: What waits to be sent.
          events: Puts messages about the session into the outbox.
          session: The session.
          card: What the house knows of it.
          agent: Passes delegations to the client; None if the server answers them.
        """
        self._house, self._socket, self._inbox, self._outbox = house, socket, inbox, outbox
        self._events, self._session, self._card, self._agent = events, session, card, agent
        self._config = SessionConfig(**card.config)
        self._began = time.monotonic()
        self._decoder: Decoder | None = None  # made for the first sound
        self._muted = False
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._closing: str | None = None  # the client's id of its `session.close`

    async def run(self, event_id: str | None, fork: str = "") -> None:
        """Serves the session to its end.

        Args:
          event_id: The client's id of its first message.
          fork: Id of the session that it goes on from.
        """
        session, events = self._session, self._events
        counted = self._house.metrics.watch(session)
        self._outbox.put(event("session.started", event_id, session=self._resource()))
        self._inform(fork)
        events.begin(session)
        stops = session.on_reply(events.reply), session.subscribe(events.tell)
        stops += (session.subscribe(self._notice_end),)
        if session.closed:  # before it had a subscriber
            self._ended.set()
        sender = asyncio.create_task(self._send())
        try:
            reason = await self._until_over(sender)
        finally:
            for stop in stops:
                stop()
        await self._leave(reason)
        counted()
        await self._say_goodbye(sender, reason)

    # The client's messages.

    async def _listen(self) -> str:
        """Handles messages; returns why they end."""
        while True:
            try:
                message = await asyncio.wait_for(self._inbox.next(), self._house.limits.silent_s)
                if isinstance(message, SessionClose):
                    self._closing = message.event_id
                    return CLOSED
                await self._handle(message)
            except ProtocolError as error:
                self._house.metrics.refused(error.code)
                self._outbox.put(error_event(error))
            except TimeoutError:
                return SILENT
            except WebSocketDisconnect:
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
            said_s = len(data) / (2 if form.kind == PCM else 1) / form.rate
            # Silence first, so that chunks are complete shortly before a step.
            until = self._house.engine.due - _EARLY_S - time.monotonic() + said_s
            silence = round((-until % self._house.turn_s) * audio.sample_rate)
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
            self._answer(message.delegation_id, kind, message.content)
        elif kind == "commentary":
            await asyncio.to_thread(self._house.engine.type, self._session, message.content)
        else:
            text = "the live model reads no text that it does not say; the text was left out"
            self._events.info(f"{kind}_not_read", text)
        now = self._events.now_ms
        self._outbox.put(
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
        self._outbox.put(event("session.updated", message.event_id, session=self._resource()))

    # What the client is told.

    def _inform(self, fork: str) -> None:
        """Says what of the configuration has no effect here."""
        config, info = self._config, self._events.info
        if config.model not in ("", self._house.name):
            info("model_substituted", f"the model here is {self._house.name!r}")
        if config.audio and config.audio.output and config.audio.output.voice:
            info("voice_substituted", "the model has one voice")
        server = isinstance(config.delegation, ServerDelegation)
        if config.instructions and not (server and self._house.reads_instructions):
            info("instructions_not_read", "neither model here reads instructions")
        if config.input:
            info("input_not_read", "the live model reads no history as text")
        if fork:
            seconds = self._session.stats.turns * self._house.turn_s
            info("session_resumed", f"{fork} goes on from {seconds:.1f} s")

    def _notice_end(self, told: SessionEvent) -> None:
        """Ends the connection if the engine ended the session; on the engine's thread."""
        if told.kind == session_events.CLOSED:
            self._events.info("session_ended", told.text)
            self._loop.call_soon_threadsafe(self._ended.set)

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
            figures = {  # for the page; not of OpenAI's protocol
                "step_ms": 1_000 * stats.step_s,
                "delay_ms": 1_000 * stats.delay_s,
                "missed": stats.missed,
                "lost": stats.lost,
            }
            told = {"usage": self._usage(), "interaction": figures}
            self._outbox.put(event("session.usage.updated", **told))

    async def _send(self) -> None:
        """Sends what waits, until the end or until the client is gone."""
        rate = self._house.engine.model.config.audio.sample_rate
        encoder, told = Encoder(self._config.format, rate), 0
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            while (item := await self._outbox.take()) is not None:
                if isinstance(item, np.ndarray):
                    if self._outbox.unheard > told:
                        self._tell_unheard(self._outbox.unheard - told)
                        told = self._outbox.unheard
                    delta = base64.b64encode(encoder.feed(item)).decode()
                    item = {"type": "session.output_audio.delta", "delta": delta}
                await self._socket.send_text(json.dumps(item))

    def _tell_unheard(self, replies: int) -> None:
        self._house.metrics.unheard(replies)
        text = f"{1_000 * replies * self._house.turn_s:.0f} ms: you read too slowly"
        self._events.info("output_audio_lost", text)

    # The end.

    async def _until_over(self, sender: asyncio.Task) -> str:
        """Waits until the session is over; returns why."""
        waits = {
            EXPIRED: asyncio.sleep(self._card.until - time.time()),
            RESTARTS: self._house.draining.wait(),
            OVERRUN: self._outbox.overrun.wait(),
            ENDED: self._ended.wait(),
        }
        tasks: dict[asyncio.Task, str] = {
            asyncio.create_task(work): reason for reason, work in waits.items()
        }
        listener = asyncio.create_task(self._listen())
        tasks |= {listener: LOST, asyncio.create_task(self._report()): LOST}
        try:
            done, _ = await asyncio.wait([*tasks, sender], return_when=asyncio.FIRST_COMPLETED)
            if listener in done:
                return listener.result()
            return next((tasks[task] for task in done if task in tasks), LOST)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, reason: str) -> None:
        limits, card = self._house.limits, self._card
        keep = limits.stored_s if card.config.get("store") else 0.0
        if reason in (LOST, RESTARTS, OVERRUN, SILENT):
            keep = max(keep, limits.kept_s)
        await self._house.dismiss(self._session, card, reason, keep)
        line = dataclasses.asdict(self._session.stats) | {
            "session": card.id[:16],  # not the whole of it, which lets one go on with it
            "client": card.owner,
            "reason": reason,
            "seconds": self._usage()["seconds"],
        }
        logs.info(_log, "%s", json.dumps(line))
        self._house.metrics.ended(reason)

    async def _say_goodbye(self, sender: asyncio.Task, reason: str) -> None:
        if reason == RESTARTS:
            text = f"go on with the session {self._card.id} in a moment"
            self._events.info("server_restarts", text)
        told = reason if reason in (CLOSED, EXPIRED) else LOST
        fields = {"session": self._resource(), "usage": self._usage()}
        self._outbox.put(event("session.closed", self._closing, reason=told, **fields))
        self._outbox.put(None)
        if reason != LOST:
            await asyncio.wait([sender], timeout=_FLUSH_S)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        if reason != LOST:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
                await asyncio.wait_for(self._socket.close(_CODES[reason]), _FLUSH_S)


def _decode(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{field}: got no base64", param=field) from error
