"""Sessions on disk: ArrayRecord files (github.com/google/array_record) read through Grain."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import flax.serialization
import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from interaction.data.sessions import StoredSession

ARRAYS = {"user": np.int16, "model": np.int16, "text": np.int32, "user_transcript": np.int32}
ARRAYS |= dict.fromkeys(
    ("arrived", "arrived_slot", "prefilled", "reasoning", "reasoning_wanted"), np.int32
)


def encode(record: StoredSession) -> bytes:
    """One session as bytes (MessagePack)."""
    return flax.serialization.msgpack_serialize(dict(record))


def decode(data: bytes) -> StoredSession:
    """The inverse of `encode`.

    Raises:
        ValueError: the bytes are no session.
    """
    try:
        record = flax.serialization.msgpack_restore(data)
    except Exception as error:
        raise ValueError(
            f"record: got {len(data)} bytes that are no MessagePack, wanted a session; "
            "make the file again with experiments.make_sessions"
        ) from error
    missing = {*ARRAYS, "meta"} - set(record)
    if missing:
        raise ValueError(
            f"record: got fields {sorted(record)}, wanted {sorted(missing)} as well; "
            "make the file again with experiments.make_sessions"
        )
    return record


def write(path: Path, records: Iterable[StoredSession]) -> int:
    """Writes sessions to one file, which appears only when it is whole; returns their number."""
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


def files(path: Path) -> list[Path]:
    """The ArrayRecord files of a folder in order, or the one file that `path` is.

    Raises:
        ValueError: there is none.
    """
    found = [path] if path.is_file() else sorted(path.glob("*.arrayrecord"))
    if not found:
        raise ValueError(
            f"path: got {path}, wanted a folder with *.arrayrecord files; "
            "make one with python -m experiments.make_sessions"
        )
    return found


class _Decode(grain.transforms.Map):
    """Bytes to the arrays of a batch; what is not an array stays behind."""

    # pyrefly: ignore[bad-override]
    def map(self, element: bytes) -> dict[str, np.ndarray]:
        record = decode(element)
        return {name: np.asarray(record[name], dtype) for name, dtype in ARRAYS.items()}


def dataset(path: Path) -> grain.MapDataset:
    """Sessions of a folder or a file as a Grain dataset of the arrays in `ARRAYS`."""
    source = grain.sources.ArrayRecordDataSource([str(file) for file in files(path)])
    return grain.MapDataset.source(source).map(_Decode())


def read(path: Path, index: int) -> tuple[StoredSession, dict]:
    """One session whole, and its metadata as a dict."""
    source = grain.sources.ArrayRecordDataSource([str(file) for file in files(path)])
    record = decode(source[index])
    return record, json.loads(record["meta"])
