"""Stored sessions in ArrayRecord files (github.com/google/array_record), read through Grain."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import flax.serialization
import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from interaction.data.stored_session import ARRAYS, StoredSession

_SUFFIXES = (".arrayrecord", ".array_record")


def encode(record: StoredSession) -> bytes:
    """One session as bytes (MessagePack)."""
    return flax.serialization.msgpack_serialize(dict(record))


def decode(data: bytes) -> StoredSession:
    """The inverse of `encode`.

    Raises:
      ValueError: The bytes are no session, or fields are missing.
    """
    record = _unpack(data)
    missing = {*ARRAYS, "meta"} - set(record)
    if missing:
        raise ValueError(
            f"record: got fields {sorted(record)}, wanted also {sorted(missing)}; "
            "make the file again with experiments.make_sessions"
        )
    return record


def arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of one encoded session.

    Args:
      data: From `encode`; fields may be missing.

    Returns:
      By name, with the shapes and dtypes of `stored_session`, such as `text` int32[turns].

    Raises:
      ValueError: The bytes are no session.
    """
    return {name: value for name, value in _unpack(data).items() if name != "meta"}


def _unpack(data: bytes) -> StoredSession:
    try:
        fields = flax.serialization.msgpack_restore(data)
        if not isinstance(fields, dict):
            raise TypeError(f"{type(fields).__name__} instead of a map")
        return fields
    except Exception as error:
        raise ValueError(
            f"record: got {len(data)} bytes that are no MessagePack, wanted a stored session; "
            "make the file again with experiments.make_sessions"
        ) from error


def write(path: Path, records: Iterable[StoredSession]) -> int:
    """Writes sessions to one file, which appears when it is complete; returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1,zstd:1")
    count = 0
    try:
        for record in records:
            writer.write(encode(record))
            count += 1
    finally:
        writer.close()
    os.replace(partial, path)
    return count


def files(path: str | os.PathLike) -> list[str]:
    """The ArrayRecord files of a folder in order of their names, or `path` where it is a file.

    Raises:
      ValueError: There is none.
    """
    place = Path(path)
    if place.is_file():
        return [str(place)]
    found = sorted(str(file) for file in place.glob("*") if file.suffix in _SUFFIXES)
    if not found:
        raise ValueError(
            f"data: got {str(path)!r}, wanted an ArrayRecord file or a folder of *{_SUFFIXES[0]}; "
            "make sessions with `python -m experiments.make_sessions`"
        )
    return found


def source(path: str | os.PathLike) -> grain.sources.ArrayRecordDataSource:
    """Encoded sessions of a folder or a file, by number.

    Raises:
      ValueError: There is no file.
    """
    return grain.sources.ArrayRecordDataSource(files(path))


def read(path: str | os.PathLike, index: int) -> tuple[StoredSession, dict]:
    """One session, and its `meta` as a dict."""
    record = decode(source(path)[index])
    return record, json.loads(record["meta"])
