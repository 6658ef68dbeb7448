"""The record of a session: everything that went in and out, enough to run it again bit for bit.

A file of frames, appended to as the talk goes on: a magic number, then for each frame its length
and checksums and a MessagePack map. The first frame says of whom and what the session is, then one
comes for each micro-turn, and one at the end if the record was closed.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import queue
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np

from interaction import checkpoint, logs
from interaction.background.delegations import Note
from interaction.config import ModelConfig
from interaction.types import Chunk, Params, Reply

_log = logging.getLogger(__name__)
VERSION = 1
MAGIC = b"session1"
_QUEUE = 300  # micro-turns that wait for the disk: a minute
_CLOSE_S = 5.0
_NEAR = 1 << 30  # bytes of an array that is read on the host
_HEAD = struct.Struct("<QII")  # length, checksum of the payload, checksum of these two


class Model(Protocol):
    """What a conversation needs of a model; `live.InteractionModel` is one."""

    config: ModelConfig
    params: Params
    tokenizer: Any

    def init_state(self, sessions: int, seed: int = 0) -> Any:  # noqa: ANN401
        """A fresh state."""

    def step(self, state: Any, chunk: Chunk) -> tuple[Any, Reply]:  # noqa: ANN401
        """One micro-turn."""


def check_alone(model: Model) -> None:
    """Refuses a model that several processes run: what is live there comes to one of them alone.

    Raises:
      ValueError: Its mesh spans processes, which would have to step alike.
    """
    mesh = getattr(model, "mesh", None)
    if mesh is not None and mesh.is_multi_process:
        raise ValueError(
            f"model: got one on a mesh of {mesh.size} devices of several processes, wanted one of "
            "this process alone; load it with mesh=sharding.make_mesh(axes, jax.local_devices())"
        )


class Entry(NamedTuple):
    """One micro-turn of a record."""

    turn: int  # counted from 0
    time: float  # s since the epoch, when it was over
    audio: np.ndarray  # float32[samples], the user's PCM
    arrived: np.ndarray | None  # int32[text_slots] in a micro-turn with text, PAD where empty
    frame: np.ndarray | None  # float32[size, size, 3]
    text: int  # the text-out token
    heard: np.ndarray  # int32[audio_positions]
    speech: np.ndarray  # float32[samples], the model's PCM
    notes: list[Note]  # what happened to delegations since the entry before


class Header(NamedTuple):
    """Of whom and what a record is."""

    model: str  # fingerprint
    config: dict[str, Any]  # of the model
    seed: int
    turn: int  # the first micro-turn: not 0 in a conversation that was restored
    state: dict[str, Any] | None  # packed; None if it is that of a fresh session
    time: float  # s since the epoch


class Record(NamedTuple):
    """A record as it was read."""

    header: Header
    entries: list[Entry]
    complete: bool  # it was closed, with every micro-turn in it
    problem: str  # what is missing, in words; "" if it is complete
    notes: list[Note]  # of after the last micro-turn


def fingerprint(config: ModelConfig, params: Params) -> str:
    """Identity of a model: the same for the same bits, on whatever devices they lie."""
    names = []
    for name, leaf in checkpoint.flatten(params).items():
        near = leaf.nbytes <= _NEAR and getattr(leaf, "is_fully_addressable", True)
        sums = weigh_bits(np.asarray(leaf), np) if near else jax.device_get(_weigh(leaf))
        names.append(f"{name} {leaf.dtype} {leaf.shape} {np.asarray(sums).tolist()}")
    text = "\n".join([checkpoint.config_to_json(config), *sorted(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weigh_bits(leaf: Any, xp: Any) -> Any:  # noqa: ANN401
    """uint32[2] of an array: weighted sums of its bits; they wrap, and so have no order.

    Args:
      leaf: float32 or bfloat16, of `xp`.
      xp: numpy or jax.numpy.
    """
    bits = leaf.view(xp.uint16 if leaf.dtype.itemsize == 2 else xp.uint32).astype(xp.uint32)
    place = xp.arange(leaf.size, dtype=xp.uint32).reshape(leaf.shape)
    weight = (place * xp.uint32(0x9E3779B1)) ^ (place >> xp.uint32(15))
    other = weight * xp.uint32(0x85EBCA6B)
    one = xp.uint32(1)  # an odd weight loses no bit
    return xp.stack([xp.sum(bits * (w | one), dtype=xp.uint32) for w in (weight, other)])


_weigh = jax.jit(lambda leaf: weigh_bits(leaf, jnp))


# Arrays, as MessagePack has them.


def pack_array(array: np.ndarray) -> list[Any]:
    """[dtype, shape, zlib of the bytes]; [] stands for None."""
    return [array.dtype.name, list(array.shape), zlib.compress(array.tobytes(), 1)]


def unpack_array(packed: list[Any]) -> np.ndarray:
    """What `pack_array` packed."""
    name, shape, data = packed
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape).copy()


def _pack_scaled(array: np.ndarray, dtype: type, scale: int) -> list[Any]:
    """float32 as integers over `scale` if they give the same bits, else as it is."""
    limits = np.iinfo(dtype)
    whole = np.clip(np.rint(array * np.float32(scale)), limits.min, limits.max).astype(dtype)
    same = np.array_equal(_unscale(whole, scale).view(np.uint32), array.view(np.uint32))
    return pack_array(whole if same else array)


def _unscale(whole: np.ndarray, scale: int) -> np.ndarray:
    return whole.astype(np.float32) / np.float32(scale)


def _unpack_scaled(packed: list[Any], scale: int) -> np.ndarray:
    array = unpack_array(packed)
    return array if array.dtype == np.float32 else _unscale(array, scale)


def pack_state(state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Every array of a state, by its path."""
    flat = checkpoint.flatten(jax.device_get(state))
    return {name: pack_array(np.asarray(leaf)) for name, leaf in flat.items()}


def unpack_state(packed: dict[str, Any], like: Any, path: object) -> Any:  # noqa: ANN401
    """A state of packed arrays, on the devices of a fresh one.

    Args:
      packed: From `pack_state`.
      like: A fresh state of the same model.
      path: Of the file, for the error.

    Raises:
      ValueError: The arrays are those of another model.
    """
    arrays = {name: unpack_array(one) for name, one in packed.items()}
    flat = checkpoint.flatten(like)
    wrong = checkpoint.differences(arrays, flat)
    if wrong:
        raise ValueError(f"{path}: the state does not fit the model: {'; '.join(wrong)}")
    leaves = [jax.device_put(arrays[name], leaf.sharding) for name, leaf in flat.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# Frames.


def pack_frame(fields: dict[str, Any]) -> bytes:
    """A map as a frame."""
    payload = bytes(msgpack.packb(fields) or b"")
    head = struct.pack("<QI", len(payload), zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def read_frames(path: pathlib.Path, magic: bytes) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Frames of a file and where they begin; None in place of one that is cut off or blank.

    Raises:
      ValueError: It is missing, is no such file, or is damaged in the middle.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: got no file ({error}); check the path") from error
    if data[: len(magic)] != magic:
        raise ValueError(f"{path}: got another kind of file, wanted one that begins with {magic!r}")
    start = len(magic)
    while start < len(data):
        if len(data) - start < _HEAD.size:
            yield None, start
            return
        length, checksum, of_head = _HEAD.unpack_from(data, start)
        if zlib.crc32(data[start : start + _HEAD.size - 4]) != of_head:
            if not data[start:].strip(b"\0"):  # the file grew, and then the power failed
                yield None, start
                return
            raise ValueError(f"{path}: damaged at byte {start}; copy the file again")
        begin = start + _HEAD.size
        if len(data) - begin < length:
            yield None, start
            return
        payload = data[begin : begin + length]
        if zlib.crc32(payload) != checksum:
            raise ValueError(f"{path}: damaged after byte {begin}; copy the file again")
        yield msgpack.unpackb(payload), start
        start = begin + length


def write_file(path: str | os.PathLike, magic: bytes, fields: dict[str, Any]) -> None:
    """Writes a file of one frame, whole or not at all."""
    place = pathlib.Path(path)
    part = place.with_name(f"{place.name}.part")
    with part.open("wb") as file:
        file.write(magic + pack_frame(fields))
        file.flush()
        os.fsync(file.fileno())
    part.replace(place)


def read_file(path: str | os.PathLike, magic: bytes) -> dict[str, Any]:
    """What `write_file` wrote.

    Raises:
      ValueError: It is missing, of another kind or version, cut off or damaged.
    """
    place = pathlib.Path(path)
    frames = [fields for fields, _ in read_frames(place, magic)]
    if len(frames) != 1 or frames[0] is None:
        raise ValueError(f"{place}: got a file that is cut off; copy it again")
    check_version(place, frames[0])
    return frames[0]


def check_version(path: pathlib.Path, fields: dict[str, Any]) -> None:
    """Refuses a file of another version.

    Raises:
      ValueError: Names both.
    """
    if fields.get("version") != VERSION:
        raise ValueError(
            f"{path}: got version {fields.get('version')}, wanted {VERSION}; use the release that "
            "wrote it"
        )


# Writing.


def pack_header(header: Header) -> bytes:
    """The beginning of a record."""
    return MAGIC + pack_frame({"version": VERSION, **header._asdict()})


def pack_entry(entry: Entry) -> bytes:
    """One micro-turn as a frame."""
    fields = entry._asdict()
    fields["audio"] = _pack_scaled(entry.audio, np.int16, 32_768)
    fields["frame"] = [] if entry.frame is None else _pack_scaled(entry.frame, np.uint8, 255)
    fields["arrived"] = [] if entry.arrived is None else pack_array(entry.arrived)
    fields["heard"] = pack_array(entry.heard)
    fields["speech"] = pack_array(entry.speech)
    fields["notes"] = [list(note) for note in entry.notes]
    return pack_frame(fields)


class SessionWriter:
    """Writes a record on a thread of its own, so that the talk never waits for a disk."""

    def __init__(self, path: str | os.PathLike, header: Header, waiting: int = _QUEUE) -> None:
        """Makes the file.

        Args:
          path: Of a file that does not exist yet.
          header: Its beginning.
          waiting: Micro-turns that may wait for the disk; further ones are lost.

        Raises:
          ValueError: The file exists or cannot be made.
        """
        try:
            self._file = open(path, "xb", buffering=0)
        except OSError as error:
            raise ValueError(
                f"record: got {path} ({error}), wanted a new file; choose it"
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
        """Takes one micro-turn; one that finds no room is lost, and so are all after it.

        Args:
          entry: Its arrays are no longer written to by anybody.
        """
        if self.dropped or self._failed or self._queue.qsize() >= self._waiting:
            if not self.dropped:
                why = "the record ends at micro-turn %d: the disk is stuck"
                logs.warn(_log, why, entry.turn)
            self.dropped += 1
        else:
            self._queue.put_nowait(entry)

    def close(self, notes: list[Note], wait_s: float = _CLOSE_S) -> bool:
        """Writes what waits and ends the file.

        Args:
          notes: Of after the last micro-turn.
          wait_s: How long to wait for the disk.

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
            _log.warning("the record ends: the disk refuses", exc_info=True)
        finally:
            self._file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


# Reading.


def read(path: str | os.PathLike) -> Record:
    """Reads a record.

    Raises:
      ValueError: It is missing, no record, of another version, or damaged; one whose end is
        missing is read up to there, see `Record.problem`.
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
    fields["audio"] = _unpack_scaled(fields["audio"], 32_768)
    fields["frame"] = _unpack_scaled(fields["frame"], 255) if fields["frame"] else None
    fields["arrived"] = unpack_array(fields["arrived"]) if fields["arrived"] else None
    fields["heard"] = unpack_array(fields["heard"])
    fields["speech"] = unpack_array(fields["speech"])
    fields["notes"] = [Note(*note) for note in fields["notes"]]
    return Entry(**fields)


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came of running a record again."""

    turns: int
    equal: bool  # every output, bit for bit
    difference: str  # the first one, in words; "" if there is none
    complete: bool  # of the record
    problem: str


def replay(path: str | os.PathLike, model: Model) -> Replay:
    """Runs a session again from what went in, with no agent and no tool.

    Args:
      path: Of a record.
      model: The one that made it, on devices of the same kind.

    Returns:
      Whether every output is the same, bit for bit.

    Raises:
      ValueError: As `read` and `check_alone` do, or it is the record of another model.
    """
    check_alone(model)
    place, record = pathlib.Path(path), read(path)
    check_identity(place, record.header.model, fingerprint(model.config, model.params))
    state = model.init_state(1, record.header.seed)
    if record.header.state is not None:
        state = unpack_state(record.header.state, state, place)
    difference = ""
    for entry in record.entries:
        state, reply = model.step(state, make_chunk(entry.audio, entry.arrived, entry.frame))
        reply = jax.device_get(reply)
        wrong = [
            name
            for name, got, wanted in (
                ("text", reply.text[0], np.int32(entry.text)),
                ("heard", reply.heard[0], entry.heard),
                ("audio", reply.audio[0], entry.speech),
            )
            if np.asarray(got).tobytes() != wanted.tobytes()
        ]
        if wrong and not difference:
            difference = f"{' and '.join(wrong)} of micro-turn {entry.turn}"
    problem = record.problem
    return Replay(len(record.entries), not difference, difference, record.complete, problem)


def check_identity(path: pathlib.Path, got: str, wanted: str) -> None:
    """Refuses a file that another model made.

    Raises:
      ValueError: Names both fingerprints.
    """
    if got != wanted:
        raise ValueError(
            f"{path}: got a file of model {got[:8]}, wanted {wanted[:8]}; load the model with "
            "which it was made"
        )


def make_chunk(audio: np.ndarray, arrived: np.ndarray | None, frame: np.ndarray | None) -> Chunk:
    """Inputs of one session."""
    fields: dict[str, Any] = {"audio": audio[None]}
    if arrived is not None:
        fields["text"] = arrived[None]
    if frame is not None:
        fields |= {"frame": frame[None], "has_frame": np.ones(1, bool)}
    return Chunk(**fields)


def new_header(
    model: Model, identity: str, seed: int, turn: int = 0, state: dict[str, Any] | None = None
) -> Header:
    """The header of a record that begins now."""
    return Header(identity, dataclasses.asdict(model.config), seed, turn, state, time.time())
