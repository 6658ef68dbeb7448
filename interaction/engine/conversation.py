"""`Conversation`: one live session of a model with a background agent, every 200 ms.

It is an engine with one session, which the caller drives. No micro-turn waits for the agent, a
tool, the disk, the network or a log.
"""

import os
import time
from collections.abc import Callable, Iterable
from typing import Self

import numpy as np

from interaction.background import delegations
from interaction.background.agent import BackgroundAgent
from interaction.engine.engine import AGAIN_S, Engine
from interaction.engine.live_sound import Loudspeaker, Microphone
from interaction.engine.rows import BatchModel
from interaction.engine.session import Session, Stats
from interaction.engine.session_events import SessionEvent
from interaction.types import Reply


class Conversation:
    """A live session of a model. `receive` and `subscribe` may be called from another thread.

    Arriving texts and results of delegations reach the model in order, each completely, some tokens
    per micro-turn. See `interaction.background` for the agents that answer delegations. In a `with`
    statement it is closed at the end.
    """

    def __init__(
        self,
        model: BatchModel,
        agent: BackgroundAgent | None = None,
        seed: int = 0,
        record: str | os.PathLike | None = None,
        *,
        frames: bool = False,
        limit_s: float = delegations.LIMIT_S,
        calls_limit_s: float = delegations.CALLS_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Starts a fresh session and compiles all variants of the step.

        Args:
          model: A loaded model.
          agent: Agent that answers delegations; it is closed with the conversation. None: every
            delegation fails, see `delegations.SORRY`.
          seed: Seed of the model's sampling.
          record: File to write the record to, see `session_record`; it must not exist.
          frames: Whether micro-turns may have video frames.
          limit_s: Time limit in s of a delegation without its tool calls, after which it fails.
          calls_limit_s: Time limit in s of a delegation's tool calls, timers included.
          clock: Function that returns the time in s from any origin.
          sleep: Function that waits for a time in s.

        Raises:
          ValueError: The model's mesh spans processes, or the record cannot be created.
        """
        self._start(Engine(model, frames=frames, clock=clock, sleep=sleep))
        limits = {"limit_s": limit_s, "calls_limit_s": calls_limit_s}
        self._session = self._engine.open(agent, seed, record, **limits)

    def _start(self, engine: Engine) -> None:
        audio = engine.model.config.audio
        self._engine, self._clock, self._sleep = engine, engine.clock, engine.sleep
        self._samples, self._turn_s = audio.turn_samples, audio.turn_samples / audio.sample_rate

    @property
    def stats(self) -> Stats:
        """Counts and times."""
        return self._session.stats

    @property
    def session(self) -> Session:
        """The session in the engine."""
        return self._session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One micro-turn.

    def step(
        self, audio: np.ndarray, text: str | None = None, frame: np.ndarray | None = None
    ) -> Reply:
        """Takes one micro-turn.

        Args:
          audio: float32[turn_samples], the user's PCM in [-1, 1].
          text: Arriving text, which the model reads in this and the next micro-turns.
          frame: float32[size, size, 3], RGB in [0, 1].

        Returns:
          The reply without the axis of sessions: audio float32[turn_samples], PCM in [-1, 1]; text
          int32[]; user_transcript int32[audio_positions]; refused is False.

        Raises:
          ValueError: The PCM or the frame is unusable, or the text too long; the conversation has
            not changed.
        """
        self._open()
        self._session.give(audio)
        return self._take(text, frame)

    def receive(self, index: int | None, pcm: np.ndarray) -> None:
        """Takes a chunk from the network for `tick`, from any thread; see `Session.receive`.

        Args:
          index: Number of the chunk in the sender's order; None: the next one.
          pcm: float32[turn_samples] in [-1, 1].
        """
        self._session.receive(index, pcm)

    def subscribe(self, callback: Callable[[SessionEvent], object]) -> Callable[[], object]:
        """Calls a function with every event, see `Session.subscribe`."""
        return self._session.subscribe(callback)

    def tick(self, text: str | None = None, frame: np.ndarray | None = None) -> Reply:
        """Takes one micro-turn with the PCM from `receive`, or silence if it has not arrived.

        Args:
          text: Arriving text, see `step`.
          frame: float32[size, size, 3], RGB in [0, 1].

        Returns:
          The reply, see `step`.

        Raises:
          ValueError: See `step`.
        """
        self._open()
        return self._take(text, frame)

    def _open(self) -> None:
        if self._session.closed:
            raise ValueError("conversation: got a closed one; restore it from a saved file")

    def _take(self, text: str | None, frame: np.ndarray | None) -> Reply:
        session = self._session
        try:
            if frame is not None:
                session.show(frame)
            if text is not None:
                session.type(text)
        except ValueError:
            session.withdraw()
            raise
        self._engine.tick()
        if session.reply is None or session.closed:
            raise RuntimeError(f"the conversation ended: {session.closed}")
        return session.reply

    # The loop.

    def play(self, source: Iterable[np.ndarray | None], sink: Callable[[Reply], object]) -> None:
        """Takes a micro-turn every 200 ms until the source ends.

        A reply is due when the next micro-turn begins. A later reply is counted as missed and
        logged, and the loop catches up. A chunk that is unusable is refused alone, counted and
        logged, and silence is heard in its place.

        Args:
          source: PCM of each micro-turn, float32[turn_samples] in [-1, 1], which is at hand, such
            as that of a file; None stands for a `tick`. For a source that waits, see `run`.
          sink: Function that takes each reply, without waits.
        """
        due = self._clock()
        for audio in source:
            self._hear(audio)
            sink(self.tick())
            due += self._turn_s
            due = self._wait_until(due)

    def _hear(self, audio: np.ndarray | None) -> None:
        if audio is None:
            return
        try:
            self._session.give(audio)
        except ValueError as error:
            self._session.refuse(error)
            self._session.give(np.zeros(self._samples, np.float32))

    def _wait_until(self, due: float) -> float:
        """Waits for the end of a micro-turn, or counts it as missed; returns when it is."""
        early = due - self._clock()
        if early > 0:
            self._sleep(early)
            return due
        self._engine.miss(-early)
        return due if -early <= AGAIN_S else self._clock()

    def run(self, source: Iterable[np.ndarray], sink: Callable[[Reply], object]) -> None:
        """Takes a micro-turn every 200 ms with a source and a sink that may wait: a sound card.

        Each has a thread of its own, and its clock may differ from this machine's: the playout
        buffer follows the source, and silence is left out for a slow sink. Errors of the source
        and the sink are raised at the end.

        Args:
          source: PCM float32[turn_samples] in [-1, 1] of each 200 ms, as it is recorded. A chunk
            that is unusable is refused alone, counted and logged.
          sink: Function that takes each reply, and waits while its device has no room.
        """
        microphone, loudspeaker = Microphone(self._session, source), Loudspeaker(sink)
        due = self._clock()
        while not self._session.ended and loudspeaker.error is None:
            loudspeaker.put(self.tick())
            due += self._turn_s
            due = self._wait_until(due)
        loudspeaker.close()
        for error in (microphone.error, loudspeaker.error):
            if error is not None:
                raise error

    # A conversation as a file.

    def close(self) -> bool:
        """Ends the conversation: closes the agent and the record.

        The agent calls no tools afterwards. `save` still works.

        Returns:
          Whether the record is complete; True if there is none.
        """
        return self._session.finish()

    def save(self, path: str | os.PathLike) -> None:
        """Writes the conversation to a file for `restore`, see `Engine.save`; waits for the disk.

        Args:
          path: File to write, which is replaced if it exists.
        """
        self._engine.save(self._session, path)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike,
        model: BatchModel,
        agent: BackgroundAgent | None = None,
        record: str | os.PathLike | None = None,
        *,
        frames: bool = False,
        limit_s: float = delegations.LIMIT_S,
        calls_limit_s: float = delegations.CALLS_LIMIT_S,
    ) -> Self:
        """Continues a saved conversation, see `Engine.restore`.

        Args:
          path: File that `save` wrote.
          model: The model of the conversation.
          agent: See the constructor.
          record: File for the record of the micro-turns from here on; it must not exist.
          frames: See the constructor.
          limit_s: See the constructor; time before `save` counts.
          calls_limit_s: See the constructor; time before `save` counts.

        Raises:
          ValueError: The file is missing, damaged, or of another model or version.
        """
        self = cls.__new__(cls)
        self._start(Engine(model, frames=frames))
        limits = {"limit_s": limit_s, "calls_limit_s": calls_limit_s}
        self._session = self._engine.restore(path, agent, record, **limits)
        return self
