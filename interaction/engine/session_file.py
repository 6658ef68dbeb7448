"""Files of maps that may contain arrays: records of sessions and saved conversations.

A file is a magic number, then frames: each has its length, two checksums and its bytes. A map is a
frame of MessagePack in which every value of bytes is left out; these follow as frames of their own,
in order. So files of any size are written and read frame by frame.
"""

import math
import os
import pathlib
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Self

import jax
import ml_dtypes
import msgpack
import numpy as np

from interaction.distributed import sharding
from interaction.engine.typed_values import Fields, brief, typed
from interaction.pretrained import tree_paths

VERSION = 3
_HEAD = struct.Struct("<QII")  # length, checksum of the bytes, checksum of these two
_BYTES = 1  # MessagePack's type of the bytes that are left out
_PIECE = 1 << 26  # most bytes of an array that are compressed together
_LONGEST = 1 << 27  # most bytes of a frame
_LONGEST_MAP = 1 << 24  # most bytes of the frame of a map
_MOST_ITEMS, _MOST_TOGETHER = 1 << 17, 1 << 12  # items of a map, and of one list or map in it
_MOST_DIMS = 16
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64", ml_dtypes.bfloat16),
    )
}
MOST_BYTES = 1 << 26  # most bytes of an array that belongs to no state


# Arrays in MessagePack.


def pack_array(array: np.ndarray) -> list[Any]:
    """Packs an array [...] of a dtype in `_DTYPES` as [dtype, shape, zlib of its pieces]."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    parts = (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
    pieces = [zlib.compress(part.data, 1) for part in parts]
    return [array.dtype.name, list(array.shape), pieces]


def _declared(packed: Any, where: str) -> tuple[jax.ShapeDtypeStruct, list[bytes]]:  # noqa: ANN401
    """Shape and dtype of a packed array, and its pieces."""
    name, shape, pieces = typed(packed, tuple[str, list[int], list[Any]], where)
    if name not in _DTYPES:
        raise ValueError(f"{where}: got dtype {brief(name)}, wanted one of {list(_DTYPES)}")
    if len(shape) > _MOST_DIMS or any(size < 0 for size in shape):
        raise ValueError(f"{where}: got shape {shape[:_MOST_DIMS]}, wanted sizes of at least 0")
    if not all(isinstance(piece, bytes) for piece in pieces):
        raise ValueError(f"{where}: got pieces that are no bytes, wanted compressed bytes")
    return jax.ShapeDtypeStruct(tuple(shape), _DTYPES[name]), pieces


def unpack_array(packed: Any, where: str = "array", most: int = MOST_BYTES) -> np.ndarray:  # noqa: ANN401
    """The array [...] that `pack_array` packed, in its dtype.

    Args:
      packed: From `pack_array`.
      where: The place, for the error message.
      most: Most bytes of the array.

    Raises:
      ValueError: It is no packed array, is longer, or its bytes do not make its shape.
    """
    declared, pieces = _declared(packed, where)
    size = math.prod(declared.shape) * declared.dtype.itemsize
    if size > most:
        raise ValueError(
            f"{where}: got an array of {size} bytes, wanted at most {most}; copy the file again"
        )
    data, end = np.empty(size, np.uint8), 0
    for piece in pieces:
        inflater = zlib.decompressobj()
        try:
            part = inflater.decompress(piece, size - end + 1)  # one byte more shows an excess
        except zlib.error as error:
            raise ValueError(f"{where}: damaged ({error}); copy the file again") from error
        start, end = end, end + len(part)
        if end > size or not inflater.eof or inflater.unused_data:
            break
        data[start:end] = np.frombuffer(part, np.uint8)
    else:
        if end == size and not (declared.dtype == bool and np.any(data > 1)):
            return data.view(declared.dtype).reshape(declared.shape)
    raise ValueError(
        f"{where}: got bytes that do not make {declared.dtype.name}{list(declared.shape)}; copy "
        "the file again"
    )


def pack_scaled(array: np.ndarray, dtype: type, scale: int) -> list[Any]:
    """Packs float32[...] as integers divided by `scale` if that keeps the bits, else as float32.

    Args:
      array: float32[...].
      dtype: Dtype of the integers: np.int16 for PCM, np.uint8 for frames.
      scale: Integer that stands for 1.0.
    """
    limits = np.iinfo(dtype)
    integers = np.clip(np.rint(array * np.float32(scale)), limits.min, limits.max).astype(dtype)
    same = np.array_equal(_unscale(integers, scale).view(np.uint32), array.view(np.uint32))
    return pack_array(integers if same else array)


def _unscale(integers: np.ndarray, scale: int) -> np.ndarray:
    return integers.astype(np.float32) / np.float32(scale)


def unpack_scaled(packed: Any, scale: int, where: str, most: int) -> np.ndarray:  # noqa: ANN401
    """The array float32[...] that `pack_scaled` packed; arguments and errors: `unpack_array`."""
    array = unpack_array(packed, where, most)
    return _unscale(array, scale) if array.dtype in (np.int16, np.uint8) else array


def pack_state(state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Packs every array of a state, by its path."""
    flat = tree_paths.flatten(state)
    return {name: pack_array(np.asarray(jax.device_get(leaf))) for name, leaf in flat.items()}


def unpack_state(packed: Any, like: Any, path: object) -> Any:  # noqa: ANN401
    """The state that `pack_state` packed, on the devices of a fresh state.

    Args:
      packed: Arrays from `pack_state`.
      like: A fresh state of the same model.
      path: Path of the file, for the error message.

    Raises:
      ValueError: The arrays belong to another model, are damaged, or are not finite.
    """
    arrays = typed(packed, dict[str, Any], f"{path}: state")
    flat = tree_paths.flatten(like)
    declared = {name: _declared(one, f"{path}: state {name}")[0] for name, one in arrays.items()}
    wrong = tree_paths.differences(declared, flat)
    if wrong:
        raise ValueError(
            f"{path}: the state does not fit the model: {'; '.join(wrong)}; load the model that "
            "the file was written with"
        )
    leaves = []
    for name, leaf in flat.items():
        array = unpack_array(arrays[name], f"{path}: state {name}", leaf.nbytes)
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{path}: state {name}: got NaN or Inf; use an earlier file")
        leaves.append(sharding.put(array, leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# Frames and maps.


def pack_map(fields: dict[str, Any]) -> Iterator[bytes]:
    """Packs a map of the types that MessagePack has as frames."""
    pieces: list[bytes] = []
    payload = bytes(msgpack.packb(_without_bytes(fields, pieces)) or b"")
    for data in (payload, *pieces):
        head = struct.pack("<QI", len(data), zlib.crc32(data))
        yield head + struct.pack("<I", zlib.crc32(head)) + data


def _without_bytes(value: Any, pieces: list[bytes]) -> Any:  # noqa: ANN401
    """A value with the bytes in it moved to `pieces`, in order."""
    if isinstance(value, bytes):
        pieces.append(value)
        return msgpack.ExtType(_BYTES, b"")
    if isinstance(value, dict):
        return {name: _without_bytes(one, pieces) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_bytes(one, pieces) for one in value]
    return value


class _CutOffError(Exception):
    """The file ends within a frame."""


class _DamagedError(ValueError):
    """A frame is damaged or too large."""


class MapReader:
    """Reads the maps of a file one by one; a `with` block closes it."""

    def __init__(self, path: str | os.PathLike, magic: bytes) -> None:
        """Opens a file.

        Args:
          path: Path of the file.
          magic: The bytes that it begins with.

        Raises:
          ValueError: The file is missing or of another kind.
        """
        self.path, self.start = pathlib.Path(path), len(magic)  # start: first byte of the last map
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise ValueError(f"{path}: got no file ({error}); check the path") from error
        if self._read(len(magic)) != magic:
            self.close()
            raise ValueError(f"{path}: got another kind of file, wanted one that begins {magic!r}")

    def __enter__(self) -> Self:
        """Returns the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, most: int | None = None) -> Fields | None:
        """The next map; None if the file is cut off or blank from `start` on.

        Args:
          most: Most bytes of the map; None: as many as the file has.

        Raises:
          EOFError: The file has no more maps.
          ValueError: The file is damaged, or the map is larger or no map.
        """
        self.start = self._file.tell()
        left = [math.inf if most is None else most]
        try:
            payload = self._frame(min(left[0], _LONGEST_MAP), begins=True)

            def piece(code: int, _: bytes) -> bytes:
                if code != _BYTES:
                    raise ValueError(f"MessagePack's type {code}")
                left[0] -= len(data := self._frame(min(left[0], _LONGEST)))
                return data

            fields = _unpack(payload, piece, f"{self.path}: at byte {self.start}")
        except _CutOffError:
            return None
        return Fields(fields, f"{self.path}: at byte {self.start}")

    def _frame(self, most: float, begins: bool = False) -> bytes:
        """The bytes of the next frame."""
        start = self._file.tell()
        head = self._read(_HEAD.size)
        if begins and not head:
            raise EOFError
        if len(head) < _HEAD.size:
            raise _CutOffError
        length, checksum, of_head = _HEAD.unpack(head)
        if zlib.crc32(head[:-4]) != of_head:
            if not head.strip(b"\0") and self._blank():  # a power failure after the file grew
                raise _CutOffError
            raise _DamagedError(f"{self.path}: damaged at byte {start}; copy the file again")
        if length > most:
            raise _DamagedError(
                f"{self.path}: got {length} bytes at byte {start}, wanted at most {most}; copy the "
                "file again"
            )
        data = self._read(length)
        if len(data) < length:
            raise _CutOffError
        if zlib.crc32(data) != checksum:
            raise _DamagedError(
                f"{self.path}: damaged after byte {start + _HEAD.size}; copy the file again"
            )
        return data

    def _read(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except OSError as error:
            raise _DamagedError(f"{self.path}: cannot be read ({error}); copy it again") from error

    def _blank(self) -> bool:
        """Whether the rest of the file is zeros."""
        while data := self._read(1 << 20):
            if data.strip(b"\0"):
                return False
        return True


def _unpack(payload: bytes, piece: Callable[[int, bytes], bytes], where: str) -> dict[str, Any]:
    """Unpacks the MessagePack of a map, of which the items are counted."""
    items = 0

    def count(value: Any) -> Any:  # noqa: ANN401
        nonlocal items
        items += len(value)
        if items > _MOST_ITEMS:
            raise ValueError(f"more than {_MOST_ITEMS} items")
        return value

    try:
        fields = msgpack.unpackb(
            payload,
            ext_hook=piece,
            list_hook=count,
            object_hook=count,
            max_array_len=_MOST_TOGETHER,
            max_map_len=_MOST_TOGETHER,
            max_ext_len=0,
        )
        if not isinstance(fields, dict):
            raise ValueError(f"{type(fields).__name__} instead of a map")
        return fields
    except _DamagedError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        why = f"{type(error).__name__} {error}"
        raise ValueError(f"{where}: got no usable map ({why}); copy the file again") from error


def write_file(path: str | os.PathLike, magic: bytes, fields: dict[str, Any]) -> None:
    """Writes a file of one map; the file is replaced atomically.

    Args:
      path: Path of the file.
      magic: The bytes that it begins with.
      fields: The map, with its `version`.
    """
    place = pathlib.Path(path)
    part = place.with_name(f"{place.name}.{secrets.token_hex(4)}.part")  # threads may write one
    try:
        with part.open("wb") as file:
            file.write(magic)
            file.writelines(pack_map(fields))
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def read_file(path: str | os.PathLike, magic: bytes) -> Fields:
    """Reads a file that `write_file` wrote.

    Raises:
      ValueError: The file is missing, of another kind or version, cut off or damaged.
    """
    with MapReader(path, magic) as file:
        try:
            fields = file.read()
        except EOFError:
            fields = None
        if fields is None:
            raise ValueError(f"{path}: got a file that is cut off; copy it again")
        check_version(file.path, fields)
        try:
            file.read()
        except EOFError:
            return fields
    raise ValueError(f"{path}: goes on after its end; copy the file again")


def check_version(path: pathlib.Path, fields: Fields) -> None:
    """Refuses a file of another version.

    Raises:
      ValueError: Names both versions.
    """
    if fields.get("version") != VERSION:
        raise ValueError(
            f"{path}: got version {brief(fields.get('version'))}, wanted {VERSION}; use the "
            "release that wrote it"
        )
