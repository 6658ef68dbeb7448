"""Crafted session files: whether each gives one clear error, in bounded memory."""

import collections
import dataclasses
import functools
import math
import pathlib
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

from interaction import presets
from interaction.background.agent import MicroTurn
from interaction.background.delegations import Delegation, Delegations
from interaction.data.tokenizer import load_tokenizer
from interaction.engine import session_file
from interaction.engine.level import LevelControl
from interaction.engine.saved_session import (
    kept_turns,
    pack_turns,
    saved_events,
    saved_level,
    saved_talk,
)
from interaction.engine.session_events import EventReader
from interaction.engine.session_record import Entry, Header, SessionReader, SessionWriter
from interaction.types import Note

_MAGIC = b"convers1"
_CLEAR = 500  # most characters of a clear error


def fuzz_session_files(count: int, seed: int = 0) -> dict[str, Any]:
    """Reads crafted records and saved conversations.

    Half of the files are records. They are cut off, have flipped bytes with and without corrected
    checksums, values of other types, and bombs: data that unpack to far more memory.

    Args:
      count: Number of files.
      seed: Seed of the changes.

    Returns:
      A dict for JSON: "files"; "clear_errors", those that gave one clear ValueError; "cut_off",
      records that were read up to where they are cut off; "harmless", those that a change left with
      usable values; "unclear", all other outcomes in words; "memory_mb", the most memory that
      reading took, MB.
    """
    rng = np.random.default_rng(seed)
    found: collections.Counter[str] = collections.Counter()
    unclear, most = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "crafted"
        samples = {_read_record: _record(path), _read_saved: _saved(path)}
        for read, frames in samples.items():
            path.write_bytes(_joined(frames))
            if read(path) != "harmless":
                raise RuntimeError(f"{read.__name__}: cannot read a file without a fault")
        for at in range(count):
            read = (_read_record, _read_saved)[at % 2]
            name, change = _CHANGES[at // 2 % len(_CHANGES)]
            path.write_bytes(change(samples[read], rng))
            tracemalloc.start()
            try:
                outcome = _outcome(read, path)
            finally:
                most = max(most, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            kind = outcome if outcome in ("clear_errors", "cut_off", "harmless") else "unclear"
            found[kind] += 1
            unclear += [f"{name}: {outcome}"] if kind == "unclear" else []
    kinds = {name: found[name] for name in ("clear_errors", "cut_off", "harmless")}
    return {"files": count, **kinds, "unclear": unclear, "memory_mb": most / 1e6}


def _outcome(read: Callable[[pathlib.Path], str], path: pathlib.Path) -> str:
    """The kind of the outcome, or what was wrong with it in words."""
    try:
        return read(path)
    except ValueError as error:
        text = str(error)
        clear = text.startswith(f"{path}: ") and "\n" not in text and len(text) < _CLEAR
        return "clear_errors" if clear else f"ValueError {text[:_CLEAR]!r}"
    except Exception as error:
        return f"{type(error).__name__} {str(error)[:_CLEAR]!r}"


def _read_record(path: pathlib.Path) -> str:
    with SessionReader(path) as record:
        if record.header.state is not None:
            session_file.unpack_state(record.header.state, _state(), path)
        for entry in record:
            del entry
        return "cut_off" if record.problem else "harmless"


def _read_saved(path: pathlib.Path) -> str:
    fields = session_file.read_file(path, _MAGIC)
    fields.take("seed", int, 0)
    fields.take("turns", int, 0)
    saved_talk(fields)
    saved_level(fields)
    saved_events(fields, presets.tiny().vocab)
    kept_turns(fields, presets.tiny())
    session_file.unpack_state(fields["state"], _state(), path)
    return "harmless"


# Files without a fault, as lists of frames.


def _state() -> dict[str, Any]:
    ring = jnp.arange(6_000, dtype=jnp.bfloat16).reshape(1, 3, 2_000)
    return {"clock": jnp.ones(1, jnp.uint32), "ring": ring, "control": jnp.zeros(1, bool)}


def _entry(turn: int, rng: np.random.Generator) -> Entry:
    config = presets.tiny()
    size = config.frame_size
    return Entry(
        turn,
        1.5,
        rng.uniform(-1, 1, config.audio.turn_samples).astype(np.float32),
        np.full(config.text_slots, 9, np.int32) if turn % 2 else None,
        rng.uniform(0, 1, (size, size, 3)).astype(np.float32) if turn == 2 else None,
        9,
        np.full(config.audio_positions, 3, np.int32),
        rng.uniform(-1, 1, config.audio.turn_samples).astype(np.float32),
        [Note(1.25, 1, "text", "é")],
    )


def _record(path: pathlib.Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    header = Header("0" * 32, {}, 3, 0, session_file.pack_state(_state()), 12.5)
    writer = SessionWriter(path, header)
    for turn in range(4):
        writer.put(_entry(turn, rng))
    if not writer.close([Note(1.5, 1, "done")], wait_s=60):
        raise RuntimeError(f"{path}: the record was not written")
    return _frames(path.read_bytes())


def _saved(path: pathlib.Path) -> list[bytes]:
    rng = np.random.default_rng(1)
    config, entries = presets.tiny(), [_entry(turn, rng) for turn in range(3)]
    turns = [
        MicroTurn(one.audio, one.speech, one.user_transcript, one.text, one.arrived, one.frame)
        for one in entries
    ]
    running = Delegation(2, "a", ["b"], asked=True, worked_s=0.5, due=[9], length=1)
    talk = Delegations(None, load_tokenizer()).saved()
    talk |= {"last": 2, "open": [dataclasses.asdict(running)], "ready": [2], "floor": 2}
    talk["span"] = 4, [9]
    fields = {"version": session_file.VERSION, "seed": 3, "turns": 3, "talk": talk}
    level = LevelControl(config.audio.sample_rate)
    for one in entries:
        level(one.audio)
    fields |= {"level": level.saved(), "told": EventReader(load_tokenizer().decode).saved()}
    fields |= {"state": session_file.pack_state(_state()), "kept": pack_turns(turns)}
    session_file.write_file(path, _MAGIC, fields)
    return _frames(path.read_bytes())


_HEAD = struct.Struct("<QII")  # as in `session_file`


def _frames(data: bytes) -> list[bytes]:
    """The magic number, then the bytes of each frame."""
    found, start = [data[:8]], 8
    while start < len(data):
        length = _HEAD.unpack_from(data, start)[0]
        start += _HEAD.size
        found.append(data[start : start + length])
        start += length
    return found


def _joined(frames: list[bytes], claim: int | None = None) -> bytes:
    """A file of frames with correct checksums; the last frame claims `claim` bytes."""
    parts = [frames[0]]
    for at, data in enumerate(frames[1:], 2):
        length = claim if claim is not None and at == len(frames) else len(data)
        head = struct.pack("<QI", length, zlib.crc32(data))
        parts += [head, struct.pack("<I", zlib.crc32(head)), data]
    return b"".join(parts)


def _is_map(data: bytes) -> bool:
    return data[:1] >= b"\x80" and data[:1] <= b"\x8f" and len(data) > 8


# Changes.


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(changed)


def _flipped(frames: list[bytes], rng: np.random.Generator) -> bytes:
    return _flip(_joined(frames), rng)


def _flipped_and_sealed(frames: list[bytes], rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(frames)))
    return _joined([*frames[:at], _flip(frames[at], rng), *frames[at + 1 :]])


def _cut(frames: list[bytes], rng: np.random.Generator) -> bytes:
    data = _joined(frames)
    return data[: rng.integers(len(data))]


def _cut_frame(frames: list[bytes], rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(frames)))
    return _joined([*frames[:at], frames[at][: rng.integers(len(frames[at]))], *frames[at + 1 :]])


def _moved(frames: list[bytes], rng: np.random.Generator) -> bytes:
    at, other = rng.integers(1, len(frames), 2)
    chosen = ([], [frames[other]], [frames[at]] * 2)[rng.integers(3)]
    return _joined([*frames[:at], *chosen, *frames[at + 1 :]])


@functools.cache
def _bomb_data() -> bytes:
    return zlib.compress(bytes(1 << 28), 9)  # 256 MiB in 261 kB


@functools.cache
def _wrong() -> tuple[list[Any], list[Any]]:
    """Values that are wrong where another type belongs, and values that are wrong everywhere."""
    bomb = ["float32", [3_200], [_bomb_data()]]
    other = [True, -1, 0.5, "x", b"", b"\xff" * 99, [], [[]], [None] * 99, {}, {"a": {}}]
    other += ["\0" * 9_999, msgpack.Timestamp(1), bomb, ["|O", [1], [b"x"]]]
    claims = [["float32", [1 << 40], []], ["float32", [-1], []]]
    return other, [(1 << 64) - 1, math.nan, math.inf, *claims]


def _wrong_value(frames: list[bytes], rng: np.random.Generator) -> bytes:
    """A missing field, or a value of another type for a field or a part of it."""
    maps = [at for at, data in enumerate(frames) if at and _is_map(data)]
    at = maps[rng.integers(len(maps))]
    whole = holder = msgpack.unpackb(frames[at])
    while True:
        keys = list(holder if isinstance(holder, dict) else range(len(holder)))
        key = keys[rng.integers(len(keys))]
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or rng.random() < 0.3:
            break
        holder = inner
    other, anywhere = _wrong()
    values = [*(one for one in other if type(one) is not type(inner)), *anywhere]
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = values[rng.integers(len(values))]
    return _joined([*frames[:at], bytes(msgpack.packb(whole) or b""), *frames[at + 1 :]])


def _bomb(frames: list[bytes], rng: np.random.Generator) -> bytes:
    """Little data that unpacks, or claims, far more."""
    maps = [at for at, data in enumerate(frames) if at and _is_map(data)]
    at = maps[rng.integers(len(maps))]
    pieces = [at for at, data in enumerate(frames) if at and data[:1] == b"x"]
    if rng.random() < 0.4:
        at, data = pieces[rng.integers(len(pieces))], _bomb_data()
    else:
        data = (
            b"\x91" * 300_000,
            b"\xdd\x7f\xff\xff\xff" * 2_000,
            b"\xdc\x0f\xff" * 100_000,
            b"\xdf\x00\x0f\xff\xff" + b"\xa0\xc0" * 500_000,
            b"\xdd\x00\x1e\x84\x80" + b"\xc0" * 2_000_000,
            b"\x81\xa1a\xdc\x0f\xff" + b"\x9f" + b"\xc0" * 2_000_000,
            b"\xdb\x7f\xff\xff\xff",
            b"\x81\xa7version\xd9\x02\xff\xfe",
            b"\xc1",
            b"",
        )[rng.integers(10)]
    return _joined([*frames[:at], data, *frames[at + 1 :]])


def _claimed(frames: list[bytes], rng: np.random.Generator) -> bytes:
    claim = 1 << int(rng.integers(28, 63))
    return _joined(frames[: rng.integers(2, len(frames))], claim)


def _foreign(frames: list[bytes], rng: np.random.Generator) -> bytes:
    noise = rng.bytes(int(rng.integers(1, 5_000)))
    return (noise, frames[0] + noise, _joined(frames) + noise)[rng.integers(3)]


_CHANGES = [
    ("flipped", _flipped),
    ("flipped, with correct checksums", _flipped_and_sealed),
    ("cut off", _cut),
    ("a frame cut off", _cut_frame),
    ("frames moved", _moved),
    ("a wrong value", _wrong_value),
    ("a wrong value", _wrong_value),
    ("a bomb", _bomb),
    ("a claimed length", _claimed),
    ("foreign bytes", _foreign),
]
