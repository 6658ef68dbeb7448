"""`Conversation`: one live session of a model with a background agent, every 200 ms.

No micro-turn waits for the agent, a tool, the disk, the network or a log.
"""

import collections
import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np

from interaction import logs
from interaction.background import delegations
from interaction.background.agent import BackgroundAgent, MicroTurn
from interaction.background.delegations import Delegations
from interaction.engine import session_file, session_record
from interaction.engine.chunk_checks import checked
from interaction.engine.reorder_buffer import ReorderBuffer
from interaction.engine.session_record import Entry, Model, SessionWriter
from interaction.pretrained import fingerprints
from interaction.types import Reply

_log = logging.getLogger(__name__)
KEEP = 300  # micro-turns in a file for the agent of a restored conversation: one minute
MAGIC = b"convers1"
_AGAIN_S = 5.0  # a loop that is later than this restarts its clock


@dataclasses.dataclass
class Stats:
    """Counts and times of a conversation."""

    turns: int = 0  # micro-turns taken
    late: int = 0  # chunks that arrived after their micro-turn
    lost: int = 0  # micro-turns without a chunk, which took silence
    doubled: int = 0  # chunks that had arrived before
    reordered: int = 0  # chunks that arrived after later ones
    missed: int = 0  # missed deadlines of `run`
    step_s: float = 0.0  # s of the model's step in the last micro-turn
    driver_s: float = 0.0  # s of everything else in the last micro-turn
    slowest_step_s: float = 0.0
    slowest_driver_s: float = 0.0
    unrecorded: int = 0  # micro-turns that are missing in the record


class Conversation:
    """A live session of a model. Of its methods only `receive` may be called from another thread.

    Arriving texts and results of delegations reach the model in order, each completely, some tokens
    per micro-turn. See `interaction.background` for the agents that answer delegations.
    """

    def __init__(
        self,
        model: Model,
        agent: BackgroundAgent | None = None,
        seed: int = 0,
        record: str | os.PathLike | None = None,
        *,
        frames: bool = False,
        limit_s: float = delegations.LIMIT_S,
        calls_limit_s: float = delegations.CALLS_LIMIT_S,
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

        Raises:
          ValueError: The model's mesh splits sessions or spans processes, or the record cannot be
            created.
        """
        session_record.check_alone(model)
        self.stats = Stats()
        self._model = model
        self._agent = agent
        self._seed = int(seed)
        self._frames = frames
        self._identity: str | None = None
        self._samples = model.config.audio.turn_samples
        self._slots = model.config.text_slots
        self._warm_up()
        self._state = model.init_state(1, seed)
        self._talk = Delegations(agent, model.tokenizer, limit_s, calls_limit_s)
        self._network = ReorderBuffer(self._samples)
        self._kept: collections.deque[MicroTurn] = collections.deque(maxlen=KEEP)
        self._closed, self._complete = False, True
        self._writer: SessionWriter | None = None
        if record is not None:
            self._start_record(record)

    def _warm_up(self) -> None:
        """Runs each variant of the step once, on a separate session."""
        state = self._model.init_state(1, self._seed)
        size = self._model.config.frame_size
        picture = np.zeros((size, size, 3), np.float32)
        silence = np.zeros(self._samples, np.float32)
        for frame in (None, picture) if self._frames else (None,):
            for arrived in (None, np.zeros(self._slots, np.int32)):
                chunk = session_record.make_chunk(silence, arrived, frame)
                state, reply = self._model.step(state, chunk)
                jax.device_get(reply)
        self._model.tokenizer.encode(delegations.SORRY)

    def _start_record(self, path: str | os.PathLike, restored: bool = False) -> None:
        state = session_file.pack_state(self._state) if restored else None
        header = session_record.new_header(
            self._model, self._fingerprint(), self._seed, self.stats.turns, state
        )
        self._writer = SessionWriter(path, header)

    def _fingerprint(self) -> str:
        if self._identity is None:
            self._identity = fingerprints.fingerprint(self._model.config, self._model.params)
        return self._identity

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
        audio = checked(self._model.config, "audio", audio)
        frame = self._checked_frame(frame)
        if text is not None:
            self._talk.type(text)
        self._network.skip()
        return self._take(audio, frame)

    def receive(self, index: int, pcm: np.ndarray) -> None:
        """Takes a chunk from the network for `tick`; may be called from another thread.

        Args:
          index: Number of the chunk's micro-turn, counted from 0.
          pcm: float32[turn_samples] in [-1, 1].

        Raises:
          ValueError: The index is not an integer or too far ahead, or the PCM is unusable; the
            conversation has not changed.
        """
        self._network.put(index, checked(self._model.config, "audio", pcm))

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
        frame = self._checked_frame(frame)
        if text is not None:
            self._talk.type(text)
        return self._take(self._network.take(), frame)

    def _open(self) -> None:
        if self._closed:
            raise ValueError("conversation: got a closed one; restore it from a saved file")

    def _checked_frame(self, frame: np.ndarray | None) -> np.ndarray | None:
        if frame is None:
            return None
        if not self._frames:
            raise ValueError(
                "frame: got a frame, wanted None; create the conversation with frames=True"
            )
        return checked(self._model.config, "frame", frame)

    def _take(self, audio: np.ndarray, frame: np.ndarray | None) -> Reply:
        began = time.perf_counter()
        self._talk.collect()
        arrived = self._talk.take(self._slots)
        chunk = session_record.make_chunk(audio, arrived, frame)
        before = time.perf_counter()
        self._state, reply = self._model.step(self._state, chunk)
        reply = Reply(*(leaf[0] for leaf in jax.device_get(reply)))
        after = time.perf_counter()
        token, speech = int(reply.text), np.asarray(reply.audio)
        user_transcript = np.asarray(reply.user_transcript)
        turn = MicroTurn(audio, speech, user_transcript, token, arrived, frame)
        self._kept.append(turn)
        self._talk.observe(turn)
        self._talk.read(token)
        notes = self._talk.notes()
        if self._writer is not None:
            inputs = self.stats.turns, time.time(), audio, arrived, frame
            self._writer.put(Entry(*inputs, token, user_transcript, speech, notes))
        self._count(after - before, before - began + time.perf_counter() - after)
        return reply

    def _count(self, step_s: float, driver_s: float) -> None:
        stats, network = self.stats, self._network
        stats.turns += 1
        stats.step_s, stats.driver_s = step_s, driver_s
        stats.slowest_step_s = max(stats.slowest_step_s, step_s)
        stats.slowest_driver_s = max(stats.slowest_driver_s, driver_s)
        stats.late, stats.lost = network.late, network.lost
        stats.doubled, stats.reordered = network.doubled, network.reordered
        stats.unrecorded = 0 if self._writer is None else self._writer.dropped

    # The loop.

    def run(
        self,
        source: Iterator[np.ndarray | None],
        sink: Callable[[Reply], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Takes a micro-turn every 200 ms until the source ends.

        A reply is due when the next micro-turn begins. A later reply is counted as missed and
        logged, and the loop catches up.

        Args:
          source: Iterator of the PCM of each micro-turn, float32[turn_samples] in [-1, 1], without
            waits; None stands for a `tick`.
          sink: Function that takes each reply, without waits.
          clock: Function that returns the time in s from any origin.
          sleep: Function that waits for a time in s.
        """
        length = self._samples / self._model.config.audio.sample_rate
        due = clock()
        for audio in source:
            sink(self.tick() if audio is None else self.step(audio))
            due += length
            early = due - clock()
            if early > 0:
                sleep(early)
            else:
                self._miss(-early)
                if -early > _AGAIN_S:
                    due = clock()

    def _miss(self, late_s: float) -> None:
        stats = self.stats
        stats.missed += 1
        logs.warn(
            _log,
            "micro-turn %d was %.0f ms late (step %.0f ms, the rest %.1f ms); %d missed so far",
            stats.turns - 1,
            1_000 * late_s,
            1_000 * stats.step_s,
            1_000 * stats.driver_s,
            stats.missed,
        )

    # A conversation as a file.

    def close(self) -> bool:
        """Ends the conversation: closes the agent and the record.

        The agent calls no tools afterwards. `save` still works.

        Returns:
          Whether the record is complete; True if there is none.
        """
        if not self._closed:
            self._closed = True
            self._talk.close()
            if self._writer is not None:
                self._complete = self._writer.close(self._talk.notes())
        return self._complete

    def save(self, path: str | os.PathLike) -> None:
        """Writes the conversation to a file for `restore`; waits for the disk.

        Before another process restores a conversation, close it: then each tool is called at most
        once. If it continues after it was saved, both conversations may make the same tool calls.

        Args:
          path: File to write, which is replaced if it exists.
        """
        self._talk.collect(every=True)
        fields = {
            "version": session_file.VERSION,
            "model": self._fingerprint(),
            "seed": self._seed,
            "frames": self._frames,
            "turns": self.stats.turns,
            "state": session_file.pack_state(self._state),
            "talk": self._talk.saved(),
            "kept": [
                [[] if leaf is None else session_file.pack_array(np.asarray(leaf)) for leaf in turn]
                for turn in self._kept
            ],
        }
        session_file.write_file(path, MAGIC, fields)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike,
        model: Model,
        agent: BackgroundAgent | None = None,
        record: str | os.PathLike | None = None,
        *,
        limit_s: float = delegations.LIMIT_S,
        calls_limit_s: float = delegations.CALLS_LIMIT_S,
    ) -> Self:
        """Continues a saved conversation; the model's next outputs are the same bit for bit.

        The agent observes the last `KEEP` micro-turns again. A running delegation is asked again,
        unless a tool was called for it or a part of its result reached the model: then it fails.

        Args:
          path: File that `save` wrote.
          model: The model of the conversation.
          agent: See the constructor.
          record: File for the record of the micro-turns from here on; it must not exist.
          limit_s: See the constructor; time before `save` counts.
          calls_limit_s: See the constructor; time before `save` counts.

        Raises:
          ValueError: The file is missing, damaged, or of another model or version.
        """
        fields = session_file.read_file(path, MAGIC)
        place = pathlib.Path(path)
        identity = fingerprints.fingerprint(model.config, model.params)
        session_record.check_identity(place, fields["model"], identity)
        self = cls(
            model,
            agent,
            fields["seed"],
            frames=fields["frames"],
            limit_s=limit_s,
            calls_limit_s=calls_limit_s,
        )
        self._identity = identity
        self._state = session_file.unpack_state(fields["state"], self._state, place)
        self.stats.turns = fields["turns"]
        self._network = ReorderBuffer(self._samples, self.stats.turns)
        for packed in fields["kept"]:
            leaves: list[Any] = [session_file.unpack_array(one) if one else None for one in packed]
            turn = MicroTurn(*leaves)
            turn = turn._replace(text=int(turn.text))
            self._kept.append(turn)
            self._talk.observe(turn)
        self._talk.restore(fields["talk"])
        if record is not None:
            self._start_record(record, restored=True)
        return self
