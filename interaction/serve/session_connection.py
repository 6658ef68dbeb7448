"""`SessionConnection`: an open session and its WebSocket, whatever protocol they speak."""

import abc
import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.websockets import WebSocketDisconnect

from interaction import logs
from interaction.engine import session_events
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.serve.audio_formats import PCM, Decoder, Encoder, Format
from interaction.serve.house import Card
from interaction.serve.messages import ProtocolError
from interaction.serve.opening import Link
from interaction.serve.outbox import Speech

_log = logging.getLogger("interaction.sessions")  # one line of JSON for each session
_EARLY_S = 0.04  # s by which a chunk is complete before the step that takes it
_REPORT_S = 2.0  # s between two reports
_FLUSH_S = 2.0  # s for the last events
# Why a session ends: OpenAI's reasons, then those of this server.
CLOSED, EXPIRED, LOST = "close_requested", "expired", "connection_lost"
RESTARTS, OVERRUN, SILENT, ENDED = "server_restarts", "overrun", "silent", "ended"
# WebSocket's codes of these ends.
_CODES = {CLOSED: 1000, EXPIRED: 1000, RESTARTS: 1012, OVERRUN: 1008, SILENT: 1008, ENDED: 1011}


class SessionConnection(abc.ABC):
    """Hears the client of a session and sends it what waits, until the session is over."""

    def __init__(self, link: Link, session: Session, card: Card) -> None:
        """Takes over a connection whose session was just opened.

        Args:
          link: The connection.
          session: The session.
          card: What the house knows of it.
        """
        self.house, self._socket, self._inbox, self.outbox = link
        self.session, self.card = session, card
        self._began = time.monotonic()
        self._decoder: Decoder | None = None  # made for the first sound
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()

    # What a protocol adds.

    @property
    @abc.abstractmethod
    def formats(self) -> tuple[Format, Format]:
        """The formats of the user's sound and of the model's."""

    @abc.abstractmethod
    def begin(self) -> list[Callable[[], object]]:
        """Tells the client of its session and subscribes; returns what ends the subscriptions."""

    @abc.abstractmethod
    async def handle(self, message: Any) -> str | None:  # noqa: ANN401
        """Takes a message of the client; returns why the session is over, None if it goes on.

        Raises:
          ProtocolError: The message is refused.
        """

    @abc.abstractmethod
    def refuse(self, error: ProtocolError) -> None:
        """Tells the client that a message was refused."""

    @abc.abstractmethod
    def inform(self, code: str, message: str) -> None:
        """Tells the client something beside the protocol's events; from any thread."""

    @abc.abstractmethod
    def report(self) -> None:
        """Tells the client how the session does; called now and then."""

    @abc.abstractmethod
    def left(self, code: int) -> str:
        """Why a session is over whose client left with a code of WebSocket."""

    @abc.abstractmethod
    def keep_s(self, reason: str) -> float:
        """How long a session that is over can be gone on with, s."""

    @abc.abstractmethod
    def farewell(self, reason: str) -> None:
        """Tells the client why the session is over."""

    # What all have in common.

    async def run(self, first: Any = None) -> None:  # noqa: ANN401
        """Serves the session to its end.

        Args:
          first: A message that has come already and is still to be handled.
        """
        counted = self.house.metrics.watch(self.session)
        sender, reason = asyncio.create_task(self._send()), ENDED
        stops: list[Callable[[], object]] = []
        try:
            stops += [*self.begin(), self.session.subscribe(self._notice_end)]
            if self.session.closed:  # before it had a subscriber
                self._ended.set()
            reason = await self._until_over(sender, first)
        finally:  # whatever went wrong, its place is free again
            for stop in stops:
                stop()
            await self._leave(reason)
            counted()
            await self._say_goodbye(sender, reason)

    @property
    def seconds(self) -> int:
        """How long the session has lasted, s."""
        return round(time.monotonic() - self._began)

    def hear(self, data: bytes, *, muted: bool = False) -> None:
        """Takes sound of the user in the format of the session.

        Raises:
          ValueError: It is no sound of that format.
        """
        audio = self.house.engine.model.config.audio
        decoder = self._decoder
        if decoder is None:
            form = self.formats[0]
            said_s = len(data) / (2 if form.kind == PCM else 1) / form.rate
            # Silence first, so that chunks are complete shortly before a step.
            until = self.house.engine.due - _EARLY_S - time.monotonic() + said_s
            silence = round((-until % self.house.turn_s) * audio.sample_rate)
            decoder = Decoder(form, audio.turn_samples, audio.sample_rate, silence)
        chunks = decoder.feed(data)
        self._decoder = decoder  # sound that is refused changes nothing
        for chunk in chunks:
            with contextlib.suppress(ValueError):  # the session has just ended
                self.session.receive(None, np.zeros_like(chunk) if muted else chunk)

    @property
    def heard(self) -> bool:
        """Whether the client has sent any sound."""
        return self._decoder is not None

    async def _listen(self, first: Any) -> str:  # noqa: ANN401
        """Handles messages; returns why they end."""
        silent_s = self.house.limits.silent_s
        while True:
            try:
                # `wait_for` of Python 3.11 may lose a cancellation among many messages.
                async with asyncio.timeout(silent_s):
                    message, first = first or await self._inbox.next(), None
                if (reason := await self._take(message)) is not None:
                    return reason
            except ProtocolError as error:
                self.house.metrics.refused(error.code)
                self.refuse(error)
            except TimeoutError:
                return SILENT
            except WebSocketDisconnect as error:
                return self.left(error.code)
            except Exception:  # a mistake here ends this session alone, and well
                logs.warn(_log, "a message failed", exc_info=True)
                return ENDED

    def later(self, work: Callable[..., object], *values: Any) -> None:  # noqa: ANN401
        """Does something in the loop; from any thread, in order."""
        self._loop.call_soon_threadsafe(work, *values)

    async def _take(self, message: Any) -> str | None:  # noqa: ANN401
        try:
            return await self.handle(message)
        except ProtocolError as error:
            error.event_id = message.event_id or ""
            raise
        except ValueError as error:
            raise ProtocolError(str(error), event_id=message.event_id or "") from error

    def _notice_end(self, told: SessionEvent) -> None:
        """Ends the connection if the engine ended the session; on the engine's thread."""
        if told.kind == session_events.CLOSED:
            self.inform("session_ended", told.text)
            self.later(self._ended.set)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            self.report()

    async def _send(self) -> None:
        """Sends what waits, until the end or until the client is gone."""
        rate = self.house.engine.model.config.audio.sample_rate
        encoder, told = None, 0
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
            while (item := await self.outbox.take()) is not None:
                if isinstance(item, Speech):
                    encoder = encoder or Encoder(self.formats[1], rate)
                    if self.outbox.unheard > told:
                        self._tell_unheard(self.outbox.unheard - told)
                        told = self.outbox.unheard
                    delta = base64.b64encode(encoder.feed(item.pcm)).decode()
                    item = json.dumps(item.event | {"delta": delta})
                await self._socket.send_text(item)

    def _tell_unheard(self, replies: int) -> None:
        self.house.metrics.unheard(replies)
        text = f"{1_000 * replies * self.house.turn_s:.0f} ms: you read too slowly"
        self.inform("output_audio_lost", text)

    async def _until_over(self, sender: asyncio.Task, first: Any) -> str:  # noqa: ANN401
        """Waits until the session is over; returns why."""
        waits = {
            EXPIRED: asyncio.sleep(self.card.until - time.time()),
            RESTARTS: self.house.draining.wait(),
            OVERRUN: self.outbox.overrun.wait(),
            ENDED: self._ended.wait(),
        }
        tasks: dict[asyncio.Task, str] = {
            asyncio.create_task(work): reason for reason, work in waits.items()
        }
        listener = asyncio.create_task(self._listen(first))
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
        await self.house.dismiss(self.session, self.card, reason, self.keep_s(reason))
        line = dataclasses.asdict(self.session.stats) | {
            "session": self.card.id[:16],  # not the whole of it, which lets one go on with it
            "client": self.card.owner,
            "reason": reason,
            "seconds": self.seconds,
        }
        logs.info(_log, "%s", json.dumps(line))
        self.house.metrics.ended(reason)

    async def _say_goodbye(self, sender: asyncio.Task, reason: str) -> None:
        self.farewell(reason)
        self.outbox.put(None)
        if reason != LOST:
            await asyncio.wait([sender], timeout=_FLUSH_S)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        if reason != LOST:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
                await asyncio.wait_for(self._socket.close(_CODES[reason]), _FLUSH_S)
