"""The record of a session: all inputs and outputs, enough to run it again bit for bit.

A record is a file of maps, see `session_file`, to which each micro-turn is appended. The first map
is the header, then there is one for each micro-turn, and a last one if the record was closed. A
record of hours is read entry by entry, see `SessionReader`.
"""

import dataclasses
import functools
import logging
import os
import pathlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from interaction import logs
from interaction.engine.rows import BatchModel
from interaction.engine.session_file import (
    VERSION,
    MapReader,
    check_version,
    pack_array,
    pack_map,
    pack_scaled,
    unpack_array,
    unpack_scaled,
)
from interaction.engine.typed_values import Fields
from interaction.types import Note

_log = logging.getLogger(__name__)
MAGIC = b"session1"
_QUEUE = 300  # micro-turns that may wait for the disk: one minute
_CLOSE_S = 5.0  # s that `close` waits for the disk
_MOST_ROWS = 1 << 16  # sessions of a batch
_PCM, _PIXEL = 32_768, 255  # integers that stand for 1.0
_MOST_OF_ENTRY, _MOST_OF_ARRAY = 1 << 25, 1 << 24  # most bytes, compressed and not


def check_alone(model: BatchModel) -> None:
    """Refuses a model of several processes, which only a `leader.Leader` may call.

    Raises:
      ValueError: The model's mesh spans processes.
    """
    mesh = getattr(model, "mesh", None)
    if mesh is not None and mesh.is_multi_process:
        raise ValueError(
            f"model: got a mesh of {mesh.size} devices of several processes, wanted devices of "
            "this process alone; pass leader.Leader(model) in process 0, and follow in the others"
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
    rows: int = 1  # sessions of its batch, on which the bits of outputs depend


class Record(NamedTuple):
    """The content of a record."""

    header: Header
    entries: list[Entry]
    complete: bool  # whether it was closed and has every micro-turn
    problem: str  # what is missing, in words; "" if it is complete
    notes: list[Note]  # notes after the last micro-turn


# Writing.


def _header_fields(header: Header) -> dict[str, Any]:
    return {"version": VERSION, **header._asdict()}


def _entry_fields(entry: Entry) -> dict[str, Any]:
    fields = entry._asdict()
    fields["audio"] = pack_scaled(entry.audio, np.int16, _PCM)
    fields["frame"] = None if entry.frame is None else pack_scaled(entry.frame, np.uint8, _PIXEL)
    fields["arrived"] = None if entry.arrived is None else pack_array(entry.arrived)
    fields["user_transcript"] = pack_array(entry.user_transcript)
    fields["speech"] = pack_array(entry.speech)
    fields["notes"] = [list(note) for note in entry.notes]
    return fields


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
        self._path = pathlib.Path(path)
        try:
            self._file = open(path, "xb", buffering=0)
        except OSError as error:
            raise ValueError(
                f"record: got {path} ({error}), wanted a new file; choose another path"
            ) from error
        self._queue: queue.Queue[Entry | list[Note]] = queue.Queue(waiting + 1)
        self._waiting = waiting
        self._written = 0
        self._failed = False
        self.dropped = 0  # micro-turns that are not in the file
        run = functools.partial(self._run, header)
        self._thread = threading.Thread(target=run, name="record", daemon=True)
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

    def discard(self) -> None:
        """Removes the file."""
        self.close([])
        self._path.unlink(missing_ok=True)

    def _run(self, header: Header) -> None:
        try:
            self._write(MAGIC)
            self._put_on_disk(_header_fields(header))
            while not isinstance(item := self._queue.get(), list):
                self._put_on_disk(_entry_fields(item))
                self._written += 1
            end = {"end": self._written, "dropped": self.dropped}
            self._put_on_disk({**end, "notes": [list(note) for note in item]})
            os.fsync(self._file.fileno())
        except Exception:
            self._failed = True
            _log.warning("the record ends: writing to the disk failed", exc_info=True)
        finally:
            self._file.close()

    def _put_on_disk(self, fields: dict[str, Any]) -> None:
        for data in pack_map(fields):
            self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


# Reading.


class SessionReader:
    """Reads a record entry by entry; a `with` block closes it.

    `notes` and `problem` are those of `Record` when the last entry was read. A record without an
    end is read as far as it goes.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens a record and reads its header.

        Args:
          path: Path of the record.

        Raises:
          ValueError: The file is missing, not a record, of another version, or damaged.
        """
        self._file = MapReader(path, MAGIC)
        self.path = self._file.path
        self.notes: list[Note] = []
        self.problem = "it was not closed"
        try:
            self.header = self._read_header()
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Returns the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read_header(self) -> Header:
        try:
            fields = self._file.read()
        except EOFError:
            fields = None
        if fields is None:
            raise ValueError(
                f"{self.path}: got a record that is cut off in its header; copy it again"
            )
        check_version(self.path, fields)
        return Header(
            fields.take("model", str),
            fields.take("config", dict[str, Any]),
            fields.take("seed", int, -(1 << 31), (1 << 31) - 1),
            fields.take("turn", int, 0),
            fields.take("state", dict[str, Any] | None),
            fields.take("time", float),
            fields.take("rows", int, 1, _MOST_ROWS),
        )

    def __iter__(self) -> Iterator[Entry]:
        """The entries that follow.

        Raises:
          ValueError: The record is damaged, or a micro-turn is missing.
        """
        turn = self.header.turn
        while True:
            try:
                fields = self._file.read(_MOST_OF_ENTRY)
            except EOFError:
                return
            if fields is None:
                start = self._file.start
                self.problem = f"it is cut off in the middle of an entry, at byte {start}"
                return
            if "end" in fields:
                self._end(fields, turn - self.header.turn)
                return
            entry = _entry(fields)
            if entry.turn != turn:
                raise ValueError(
                    f"{fields.where}: micro-turn {turn} is missing; copy the file again"
                )
            turn += 1
            yield entry

    def _end(self, fields: Fields, read: int) -> None:
        """Takes the last map of a record of which some entries were read."""
        written, lost = fields.take("end", int, 0), fields.take("dropped", int, 0)
        self.notes = fields.take("notes", list[Note])
        if written != read:
            raise ValueError(
                f"{fields.where}: got {read} micro-turns, wanted the {written} that were written; "
                "copy the file again"
            )
        self.problem = f"the last {lost} micro-turns were lost: the disk was stuck" if lost else ""
        try:
            self._file.read(_MOST_OF_ENTRY)
        except EOFError:
            return
        raise ValueError(f"{self.path}: goes on after its end; copy the file again")


def read(path: str | os.PathLike) -> Record:
    """Reads a whole record into memory.

    A record without an end is read as far as it goes, see `Record.problem`.

    Raises:
      ValueError: The file is missing, not a record, of another version, or damaged.
    """
    with SessionReader(path) as reader:
        entries = list(reader)
        problem = reader.problem
    return Record(reader.header, entries, not problem, problem, reader.notes)


def _entry(fields: Fields) -> Entry:
    def array(name: str, dtype: type, rank: int, scale: int = 0) -> np.ndarray:
        where = f"{fields.where}: {name}"
        if scale:
            value = unpack_scaled(fields[name], scale, where, _MOST_OF_ARRAY)
        else:
            value = unpack_array(fields[name], where, _MOST_OF_ARRAY)
        if value.dtype != dtype or value.ndim != rank:
            raise ValueError(
                f"{where}: got {value.dtype.name}{list(value.shape)}, wanted {dtype.__name__} of "
                f"{rank} dimensions; copy the file again"
            )
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{where}: got NaN or Inf, wanted finite numbers; record it again")
        return value

    return Entry(
        fields.take("turn", int, 0),
        fields.take("time", float),
        array("audio", np.float32, 1, _PCM),
        None if fields["arrived"] is None else array("arrived", np.int32, 1),
        None if fields["frame"] is None else array("frame", np.float32, 3, _PIXEL),
        fields.take("text", int, 0, (1 << 31) - 1),
        array("user_transcript", np.int32, 1),
        array("speech", np.float32, 1),
        fields.take("notes", list[Note]),
    )


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


def new_header(
    model: BatchModel,
    identity: str,
    seed: int,
    turn: int = 0,
    state: dict[str, Any] | None = None,
    rows: int = 1,
) -> Header:
    """The header of a record that begins now.

    Args:
      model: The model.
      identity: Fingerprint of the model.
      seed: Seed of the session.
      turn: Number of the first micro-turn.
      state: Packed state before the first micro-turn; None for a fresh session.
      rows: Sessions of the session's batch.
    """
    config = dataclasses.asdict(model.config)
    return Header(identity, config, seed, turn, state, time.time(), rows)
