"""Stored sessions in ArrayRecord files (github.com/google/array_record), read through Grain."""

import bisect
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path

import flax.serialization
import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from interaction.data.stored_session import ARRAYS, StoredSession

_AGAIN = "make it again with `python -m experiments.make_sessions`"
_SUFFIXES = (".arrayrecord", ".array_record")


def encode(record: StoredSession) -> bytes:
    """One session as bytes (MessagePack)."""
    return flax.serialization.msgpack_serialize(dict(record))


def decode(data: bytes, where: str = "record") -> StoredSession:
    """The inverse of `encode`.

    Args:
      data: From `encode`.
      where: The place, for the error message.

    Raises:
      ValueError: The bytes are no session, or fields are missing.
    """
    record = _unpack(data, where)
    missing = {*ARRAYS, "meta"} - set(record)
    if missing:
        raise ValueError(
            f"{where}: got fields {sorted(record)}, wanted also {sorted(missing)}; {_AGAIN}"
        )
    return record


def arrays(data: bytes, where: str = "record") -> dict[str, np.ndarray]:
    """The arrays of one encoded session.

    Args:
      data: From `encode`; fields may be missing.
      where: The place, for the error message.

    Returns:
      By name, with the shapes and dtypes of `stored_session`, such as `text` int32[turns].

    Raises:
      ValueError: The bytes are no session.
    """
    found = {name: value for name, value in _unpack(data, where).items() if name != "meta"}
    foreign = [
        name for name, value in found.items() if not isinstance(value, np.ndarray | np.generic)
    ]
    if foreign:
        raise ValueError(f"{where}: got {foreign} that are no arrays; {_AGAIN}")
    return found


def _unpack(data: bytes, where: str) -> StoredSession:
    try:
        fields = flax.serialization.msgpack_restore(data)
        if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
            raise TypeError(f"{type(fields).__name__} instead of a map of names")
        return fields
    except Exception as error:
        raise ValueError(
            f"{where}: got {len(data)} bytes that are no MessagePack, wanted a stored session; "
            f"{_AGAIN}"
        ) from error


def write(path: str | os.PathLike, records: Iterable[StoredSession]) -> int:
    """Writes sessions to one file, which appears when it is complete; returns their number."""
    path = Path(path)
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


class Sessions:
    """Encoded sessions of a folder or a file, by number, read when they are indexed."""

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens the files.

        Raises:
          ValueError: There is no file, or one is cut off or no ArrayRecord file.
        """
        self._files = files(path)
        self._sources = [_open(file) for file in self._files]
        self._ends = list(itertools.accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        """Number of sessions."""
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        """The file of a session, and its number in the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"session: got {index}, wanted 0..{len(self) - 1}")
        file = bisect.bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    def place(self, index: int) -> str:
        """File of a session and its number in the file, for error messages."""
        file, inside = self._find(index)
        return f"{self._files[file]}: session {inside}"

    def __getitem__(self, index: int) -> bytes:
        """One encoded session.

        Raises:
          ValueError: Its bytes are damaged.
        """
        file, inside = self._find(index)
        try:
            return self._sources[file][inside]
        except Exception as error:
            raise ValueError(
                f"{self.place(index)}: damaged ({error}); copy the file again, or {_AGAIN}"
            ) from error

    def decode(self, index: int) -> StoredSession:
        """One session, see `decode`."""
        return decode(self[index], self.place(index))

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one session by name, such as `text` int32[turns]; see `arrays`."""
        return arrays(self[index], self.place(index))


def _open(file: str) -> grain.sources.ArrayRecordDataSource:
    try:
        source = grain.sources.ArrayRecordDataSource([file])
        len(source)  # opens it
        return source
    except Exception as error:
        raise ValueError(
            f"{file}: no complete ArrayRecord file ({error}); copy it again, or {_AGAIN}"
        ) from error


def source(path: str | os.PathLike) -> Sessions:
    """Encoded sessions of a folder or a file, by number.

    Raises:
      ValueError: There is no file, or one is cut off or no ArrayRecord file.
    """
    return Sessions(path)


def read(path: str | os.PathLike, index: int) -> tuple[StoredSession, dict]:
    """One session, and its `meta` as a dict."""
    record = Sessions(path).decode(index)
    return record, json.loads(record["meta"])
