"""`Session`: one conversation of an engine, with its microphone, agent, record and events."""

import collections
import dataclasses
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from interaction import logs
from interaction.background import trained
from interaction.background.agent import BackgroundAgent, MicroTurn
from interaction.background.delegations import Delegations
from interaction.engine import session_events, session_record
from interaction.engine.chunk_checks import checked
from interaction.engine.level import LevelControl
from interaction.engine.playout import PlayoutBuffer
from interaction.engine.rows import BatchModel, RowInput
from interaction.engine.session_events import EventReader, SessionEvent
from interaction.engine.session_record import Entry, SessionWriter
from interaction.types import Reply

_log = logging.getLogger(__name__)
_OF_NETWORK = (
    "late", "lost", "doubled", "reordered", "reanchored",
    "inserted_s", "dropped_s", "delay_s", "behind_s",
)  # fmt: skip
SUFFIX = ".conversation"  # of files whose name is that of their session, see `snapshots`
FINISH_S = 10.0  # s to wait for an end that another thread has begun
KEEP = 300  # micro-turns in a file for the agent of a restored conversation: one minute


@dataclasses.dataclass
class Stats:
    """Counts and times of a session."""

    turns: int = 0  # micro-turns taken
    refused: int = 0  # chunks that were unusable
    late: int = 0  # chunks that arrived after they were needed, see `PlayoutBuffer`
    lost: int = 0  # chunks that were needed and not there
    doubled: int = 0  # chunks that had arrived before
    reordered: int = 0  # chunks that arrived after later ones
    reanchored: int = 0  # how often the sender began another numbering
    inserted_s: float = 0.0  # s of sound that was put in beside what was sent
    dropped_s: float = 0.0  # s of sound that arrived and was left out
    delay_s: float = 0.0  # s, delay of the playout buffer
    behind_s: float = 0.0  # s of sound that had arrived and was not played yet
    microphone: str = ""  # what is wrong with the level of received sound, see `LevelControl`
    missed: int = 0  # replies that were not ready when the next micro-turn began
    step_s: float = 0.0  # s of the model's step in the last micro-turn
    driver_s: float = 0.0  # s of everything else of this session in the last micro-turn
    slowest_step_s: float = 0.0
    slowest_driver_s: float = 0.0
    unrecorded: int = 0  # micro-turns that are missing in the record


class Session:
    """One conversation; `Engine.open` makes it.

    `receive`, `show`, `subscribe` and `on_reply` may be called from any thread. All else belongs to
    the thread of the engine, which calls `inputs` and `observe` once for each micro-turn.
    """

    def __init__(
        self,
        model: BatchModel,
        agent: BackgroundAgent | None,
        seed: int,
        *,
        frames: bool,
        limit_s: float,
        calls_limit_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Starts without a record; see `Engine.open` for the arguments."""
        self.seed, self.limits = int(seed), (limit_s, calls_limit_s)
        self.name = secrets.token_hex(8)  # of files that belong to it
        self.stats = Stats()
        self.reply: Reply | None = None  # of the last micro-turn
        self.closed = ""  # the reason, in words; "" while it is open
        self.complete = True  # whether the record has every micro-turn
        self.frames = frames
        self._config = model.config
        # A model that reads any text can say any; others say the sentences of their training.
        says = None if model.config.trained_on_text else trained.says
        self.talk = Delegations(agent, model.tokenizer, limit_s, calls_limit_s, says=says)
        audio = model.config.audio
        self._network = PlayoutBuffer(audio.turn_samples, audio.sample_rate, clock)
        self._level = LevelControl(audio.sample_rate)
        self._frame: np.ndarray | None = None
        self._given: np.ndarray | None = None
        self._kept: collections.deque[MicroTurn] = collections.deque(maxlen=KEEP)
        self._writer: SessionWriter | None = None
        self._events = EventReader(model.tokenizer.decode)
        self._subscribers: dict[object, Callable[[SessionEvent], object]] = {}
        self._listeners: dict[object, Callable[[Reply], object]] = {}
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._finisher: threading.Thread | None = None
        self.last_state: Any = None  # the model's state at the end, if it was asked for

    # From any thread.

    def receive(self, index: int | None, pcm: np.ndarray) -> None:
        """Takes a chunk of the user's PCM from a network or a sound card, see `PlayoutBuffer`.

        Args:
          index: Number of the chunk in the sender's order; None: the next one.
          pcm: float32[turn_samples] in [-1, 1].

        Raises:
          ValueError: The index is no number, or the PCM is unusable; the session has not changed.
            Or it is closed.
        """
        if self.closed:
            raise ValueError(f"session: got a closed one ({self.closed}); open another one")
        self._network.put(index, checked(self._config, "audio", pcm))

    def hear(self, pcm: np.ndarray) -> None:
        """Takes the next chunk; one that is unusable is counted and logged.

        Args:
          pcm: float32[turn_samples] in [-1, 1].
        """
        try:
            self.receive(None, pcm)
        except ValueError as error:
            self.refuse(error)

    def refuse(self, error: ValueError) -> None:
        """Counts and logs a chunk that was unusable."""
        self.stats.refused += 1
        logs.warn(_log, "a chunk is refused: %s", str(error))

    def end_audio(self) -> None:
        """Says that no more chunks come; the engine closes the session when all are played."""
        self._network.close()

    @property
    def ended(self) -> bool:
        """Whether all of a source that ended was played."""
        return self._network.ended

    def show(self, frame: np.ndarray) -> None:
        """Takes a video frame for the next micro-turn; a newer one replaces it.

        Args:
          frame: float32[size, size, 3], RGB in [0, 1].

        Raises:
          ValueError: The frame is unusable, or the session has no video.
        """
        if not self.frames:
            raise ValueError("frame: got a frame, wanted None; make the engine with frames=True")
        self._frame = checked(self._config, "frame", frame)

    def subscribe(self, callback: Callable[[SessionEvent], object]) -> Callable[[], object]:
        """Calls a function with every event, on the engine's thread, so it must not wait.

        Args:
          callback: The function; an exception of it is logged and ends the subscription.

        Returns:
          A function that ends the subscription.
        """
        return self._subscribe(self._subscribers, callback)

    def on_reply(self, callback: Callable[[Reply], object]) -> Callable[[], object]:
        """Calls a function with the reply of every micro-turn, see `subscribe`; before its events.

        Args:
          callback: The function; it is given audio float32[turn_samples], PCM in [-1, 1]; text
            int32[]; and user_transcript int32[audio_positions].

        Returns:
          A function that ends the subscription.
        """
        return self._subscribe(self._listeners, callback)

    def _subscribe(self, callbacks: dict[object, Any], callback: Any) -> Callable[[], object]:  # noqa: ANN401
        key = object()
        with self._lock:
            callbacks[key] = callback
        return lambda: callbacks.pop(key, None)

    # From the engine's thread.

    def give(self, audio: np.ndarray) -> None:
        """Takes the PCM float32[turn_samples] of the next micro-turn instead of the network's.

        Raises:
          ValueError: The PCM is unusable; the session has not changed.
        """
        self._given = checked(self._config, "audio", audio)

    def withdraw(self) -> None:
        """Forgets what `give` and `show` took."""
        self._given = self._frame = None

    def type(self, text: str) -> None:
        """Takes text that the model reads in the next micro-turns.

        Raises:
          ValueError: The text is too long, too much text waits, it is no string, or the model was
            not trained on text.
        """
        if not self._config.trained_on_text:
            raise ValueError(
                "text: got typed text, wanted none: this model was not trained on it and would say "
                "anything; speak to it, or load a model that was"
            )
        if not isinstance(text, str):
            raise ValueError(f"text: got {type(text).__name__}, wanted a string; decode it first")
        self.talk.type(text)

    def inputs(self) -> RowInput:
        """What the session takes in the next micro-turn."""
        began = time.perf_counter()
        self.talk.collect()
        arrived = self.talk.take(self._config.text_slots)
        received = self._network.take()
        audio, self._given = self._given, None
        if audio is None:
            audio = self._level(received)
            self._read_level()
        frame, self._frame = self._frame, None
        self.stats.driver_s = time.perf_counter() - began
        return RowInput(audio, arrived, frame)

    def observe(self, given: RowInput, reply: Reply, step_s: float) -> None:
        """Takes the reply of a micro-turn.

        Args:
          given: Its inputs, from `inputs`.
          reply: audio float32[turn_samples] in [-1, 1], text int32[], user_transcript
            int32[audio_positions].
          step_s: Time of the model's step, s.
        """
        began = time.perf_counter()
        token, speech = int(reply.text), np.asarray(reply.audio)
        user_transcript = np.asarray(reply.user_transcript)
        turn = MicroTurn(given.audio, speech, user_transcript, token, given.arrived, given.frame)
        self.reply = reply
        self._kept.append(turn)
        self.talk.observe(turn)
        self.talk.read(token)
        notes = self.talk.notes()
        stats = self.stats
        if self._writer is not None:
            inputs = stats.turns, time.time(), given.audio, given.arrived, given.frame
            self._writer.put(Entry(*inputs, token, user_transcript, speech, notes))
            stats.unrecorded = self._writer.dropped
        self._pass(self._listeners, reply)
        for event in self._events.read(stats.turns, reply, notes):
            self.tell(event)
        self._read_network()
        stats.turns += 1
        stats.step_s, stats.driver_s = step_s, stats.driver_s + time.perf_counter() - began
        stats.slowest_step_s = max(stats.slowest_step_s, step_s)
        stats.slowest_driver_s = max(stats.slowest_driver_s, stats.driver_s)

    def _read_level(self) -> None:
        if self._level.problem != self.stats.microphone:
            self.stats.microphone = self._level.problem
            text = self._level.problem or "good"
            self.tell(SessionEvent(self.stats.turns, session_events.MICROPHONE, text))

    def _read_network(self) -> None:
        stats, network = self.stats, self._network
        what = ["a chunk did not come"] * (network.lost > stats.lost)
        what += ["sound was left out to catch up"] * (network.dropped_s > stats.dropped_s)
        what += ["the sender counts anew"] * (network.reanchored > stats.reanchored)
        for name in _OF_NETWORK:
            setattr(stats, name, getattr(network, name))
        if what:
            self.tell(SessionEvent(stats.turns, session_events.AUDIO_LOST, "; ".join(what)))

    def miss(self, late_s: float, count: int = 1) -> None:
        """Counts replies, the last of which was `late_s` seconds late."""
        self.stats.missed += count
        text = f"{1_000 * late_s:.0f} ms late"
        self.tell(SessionEvent(self.stats.turns - 1, session_events.DEADLINE_MISSED, text))

    def tell(self, event: SessionEvent) -> None:
        """Passes an event to the subscribers."""
        self._pass(self._subscribers, event)

    def _pass(self, callbacks: dict[object, Any], value: SessionEvent | Reply) -> None:
        with self._lock:
            known = list(callbacks.items())
        for key, callback in known:
            try:
                callback(value)
            except BaseException:  # SystemExit of a callback, too, belongs to it alone
                logs.warn(_log, "a subscriber failed and is dropped", exc_info=True)
                callbacks.pop(key, None)

    # As a file.

    def record(self, path: str | os.PathLike, header: session_record.Header) -> None:
        """Starts the record.

        Raises:
          ValueError: The file exists or cannot be created.
        """
        self._writer = SessionWriter(path, header)

    def undo(self) -> None:
        """Removes the record of a session that could not begin, and gives the agent back."""
        self.talk.detach()
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def finish(self, reason: str = "closed") -> bool:
        """Ends the session: closes the agent and the record. Returns whether it is complete."""
        with self._lock:
            first, self.closed = not self.closed, self.closed or reason
        if first:
            self._finisher = threading.current_thread()
            try:
                self.talk.close()
                if self._writer is not None:
                    self.complete = self._writer.close(self.talk.notes())
                self.tell(SessionEvent(self.stats.turns, session_events.CLOSED, reason))
            finally:
                self._finished.set()
        if self._finisher is not threading.current_thread():  # a subscriber's second call
            self._finished.wait(FINISH_S)
        return self.complete and self._finished.is_set()

    def saved(self) -> dict[str, Any]:
        """All but the model's state: what `resume` takes."""
        self.talk.collect(every=True)
        return {
            "seed": self.seed,
            "turns": self.stats.turns,
            "talk": self.talk.saved(),
            "level": self._level.saved(),
            "told": self._events.saved(),
            "kept": list(self._kept),
        }

    def resume(self, fields: dict[str, Any]) -> None:
        """Goes on from what `saved` returned; the agent observes the kept micro-turns again."""
        self.stats.turns = fields["turns"]
        for turn in fields["kept"]:
            self._kept.append(turn)
            self.talk.observe(turn)
        self.talk.restore(fields["talk"])
        self._level.resume(fields["level"])
        self._events.resume(fields["told"])
