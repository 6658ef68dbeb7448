"""The record of a session: all inputs and outputs, enough to run it again bit for bit.

A record is a file of frames, see `session_file`, to which each micro-turn is appended. The first
frame is the header, then there is one frame for each micro-turn, and a last one if the record was
closed.
"""

import dataclasses
import logging
import os
import pathlib
import queue
import threading
import time
from typing import Any, NamedTuple, Protocol

import numpy as np

from interaction import logs
from interaction.config import ModelConfig
from interaction.engine.session_file import (
    VERSION,
    check_version,
    pack_array,
    pack_frame,
    pack_scaled,
    read_frames,
    unpack_array,
    unpack_scaled,
)
from interaction.types import Chunk, Note, Params, Reply

_log = logging.getLogger(__name__)
MAGIC = b"session1"
_QUEUE = 300  # micro-turns that may wait for the disk: one minute
_CLOSE_S = 5.0  # s that `close` waits for the disk


class Model(Protocol):
    """The interface of a model in a conversation; `live_model.InteractionModel` has it."""

    config: ModelConfig
    params: Params
    tokenizer: Any

    def init_state(self, sessions: int, seed: int = 0) -> Any:  # noqa: ANN401
        """A fresh state of `sessions` sessions."""

    def step(self, state: Any, chunk: Chunk) -> tuple[Any, Reply]:  # noqa: ANN401
        """Takes one micro-turn of every session."""


def check_alone(model: Model) -> None:
    """Refuses a model of several processes, since only one of them would have the live inputs.

    Raises:
      ValueError: The model's mesh spans processes.
    """
    mesh = getattr(model, "mesh", None)
    if mesh is not None and mesh.is_multi_process:
        raise ValueError(
            f"model: got a mesh of {mesh.size} devices of several processes, wanted devices of "
            "this process alone; load it with mesh=sharding.make_mesh(axes, jax.local_devices())"
        )


class Entry(NamedTuple):
    """One micro-turn of a record."""

    turn: int  # number of the micro-turn, counted from 0
    time: float  # s since the epoch, at the end of the micro-turn
    audio: np.ndarray  # float32[samples], the user's PCM in [-1, 1]
    arrived: np.ndarray | None  # int32[text_slots], PAD where empty; None without text
    frame: np.ndarray | None  # float32[size, size, 3], RGB in [0, 1]
    text: int  # the text-out token
    user_transcript: np.ndarray  # int32[audio_positions]
    speech: np.ndarray  # float32[samples], the model's PCM in [-1, 1]
    notes: list[Note]  # notes about delegations since the entry before


class Header(NamedTuple):
    """The model and the first state of a record."""

    model: str  # fingerprint of the model
    config: dict[str, Any]  # configuration of the model
    seed: int
    turn: int  # number of the first micro-turn, not 0 if the conversation was restored
    state: dict[str, Any] | None  # packed state; None for a fresh session
    time: float  # s since the epoch


class Record(NamedTuple):
    """The content of a record."""

    header: Header
    entries: list[Entry]
    complete: bool  # whether it was closed and has every micro-turn
    problem: str  # what is missing, in words; "" if it is complete
    notes: list[Note]  # notes after the last micro-turn


# Writing.


def pack_header(header: Header) -> bytes:
    """The first bytes of a record: magic number and header."""
    return MAGIC + pack_frame({"version": VERSION, **header._asdict()})


def pack_entry(entry: Entry) -> bytes:
    """Packs one micro-turn as a frame."""
    fields = entry._asdict()
    fields["audio"] = pack_scaled(entry.audio, np.int16, 32_768)
    fields["frame"] = [] if entry.frame is None else pack_scaled(entry.frame, np.uint8, 255)
    fields["arrived"] = [] if entry.arrived is None else pack_array(entry.arrived)
    fields["user_transcript"] = pack_array(entry.user_transcript)
    fields["speech"] = pack_array(entry.speech)
    fields["notes"] = [list(note) for note in entry.notes]
    return pack_frame(fields)


class SessionWriter:
    """Writes a record on a separate thread, so that the conversation never waits for the disk."""

    def __init__(self, path: str | os.PathLike, header: Header, waiting: int = _QUEUE) -> None:
        """Creates the file.

        Args:
          path: Path of a file that does not exist yet.
          header: Header of the record.
          waiting: Micro-turns that may wait for the disk; further ones are lost.

        Raises:
          ValueError: The file exists or cannot be created.
        """
        try:
            self._file = open(path, "xb", buffering=0)
        except OSError as error:
            raise ValueError(
                f"record: got {path} ({error}), wanted a new file; choose another path"
            ) from error
        self._queue: queue.Queue[Header | Entry | list[Note]] = queue.Queue(waiting + 2)
        self._waiting = waiting
        self._written = 0
        self._failed = False
        self.dropped = 0  # micro-turns that are not in the file
        self._queue.put(header)
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Takes one micro-turn; if too many wait, it is lost, and so are all later ones.

        Args:
          entry: The micro-turn, whose arrays must not be changed afterwards.
        """
        if self.dropped or self._failed or self._queue.qsize() >= self._waiting:
            if not self.dropped:
                why = "the record ends at micro-turn %d: the disk is stuck"
                logs.warn(_log, why, entry.turn)
            self.dropped += 1
        else:
            self._queue.put_nowait(entry)

    def close(self, notes: list[Note], wait_s: float = _CLOSE_S) -> bool:
        """Writes the waiting micro-turns and ends the file.

        Args:
          notes: Notes after the last micro-turn.
          wait_s: Longest time in s to wait for the disk.

        Returns:
          Whether the record is complete and on the disk.
        """
        try:
            self._queue.put_nowait(notes)
        except queue.Full:
            return False
        self._thread.join(wait_s)
        return not (self._thread.is_alive() or self._failed or self.dropped)

    def _run(self) -> None:
        try:
            while not isinstance(item := self._queue.get(), list):
                self._write(pack_header(item) if isinstance(item, Header) else pack_entry(item))
                self._written += isinstance(item, Entry)
            end = {"end": self._written, "dropped": self.dropped}
            self._write(pack_frame({**end, "notes": [list(note) for note in item]}))
            os.fsync(self._file.fileno())
        except Exception:
            self._failed = True
            _log.warning("the record ends: writing to the disk failed", exc_info=True)
        finally:
            self._file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


# Reading.


def read(path: str | os.PathLike) -> Record:
    """Reads a record.

    A record without an end is read as far as it goes, see `Record.problem`.

    Raises:
      ValueError: The file is missing, not a record, of another version, or damaged.
    """
    place = pathlib.Path(path)
    header, entries, problem = None, [], "it was not closed"
    notes: list[Note] = []
    for fields, start in read_frames(place, MAGIC):
        if fields is None:
            problem = f"it is cut off in the middle of an entry, at byte {start}"
        elif header is None:
            check_version(place, fields)
            header = Header(**{name: fields[name] for name in Header._fields})
        elif "end" in fields:
            notes = [Note(*note) for note in fields["notes"]]
            lost = fields["dropped"]
            problem = f"the last {lost} micro-turns were lost: the disk was stuck" if lost else ""
        else:
            entries.append(_entry(fields))
    if header is None:
        raise ValueError(f"{place}: got a record that is cut off in its header; copy it again")
    for index, entry in enumerate(entries):
        if entry.turn != header.turn + index:
            raise ValueError(
                f"{place}: micro-turn {header.turn + index} is missing; copy the file again"
            )
    return Record(header, entries, not problem, problem, notes)


def _entry(fields: dict[str, Any]) -> Entry:
    fields = dict(fields)
    fields["audio"] = unpack_scaled(fields["audio"], 32_768)
    fields["frame"] = unpack_scaled(fields["frame"], 255) if fields["frame"] else None
    fields["arrived"] = unpack_array(fields["arrived"]) if fields["arrived"] else None
    fields["user_transcript"] = unpack_array(fields["user_transcript"])
    fields["speech"] = unpack_array(fields["speech"])
    fields["notes"] = [Note(*note) for note in fields["notes"]]
    return Entry(**fields)


def check_identity(path: pathlib.Path, got: str, wanted: str) -> None:
    """Refuses a file of another model.

    Args:
      path: Path of the file, for the error message.
      got: Fingerprint of the file's model.
      wanted: Fingerprint of the loaded model.

    Raises:
      ValueError: Names both fingerprints.
    """
    if got != wanted:
        raise ValueError(
            f"{path}: got a file of model {got[:8]}, wanted {wanted[:8]}; load the model of the "
            "file"
        )


def make_chunk(audio: np.ndarray, arrived: np.ndarray | None, frame: np.ndarray | None) -> Chunk:
    """A chunk of one session.

    Args:
      audio: float32[turn_samples], PCM in [-1, 1].
      arrived: int32[text_slots], PAD where empty; None without text.
      frame: float32[size, size, 3], RGB in [0, 1]; None without a frame.

    Returns:
      The inputs with a leading axis of one session.
    """
    fields: dict[str, Any] = {"audio": audio[None]}
    if arrived is not None:
        fields["text"] = arrived[None]
    if frame is not None:
        fields |= {"frame": frame[None], "has_frame": np.ones(1, bool)}
    return Chunk(**fields)


def new_header(
    model: Model, identity: str, seed: int, turn: int = 0, state: dict[str, Any] | None = None
) -> Header:
    """The header of a record that begins now.

    Args:
      model: The model.
      identity: Fingerprint of the model.
      seed: Seed of the session.
      turn: Number of the first micro-turn.
      state: Packed state before the first micro-turn; None for a fresh session.
    """
    return Header(identity, dataclasses.asdict(model.config), seed, turn, state, time.time())
