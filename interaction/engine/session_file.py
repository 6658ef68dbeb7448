"""Files of frames: MessagePack maps with checksums, which may contain arrays.

A file is a magic number, then for each frame its length, two checksums and its payload. Records of
sessions and saved conversations are such files.
"""

import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np

from interaction.pretrained import tree_paths

VERSION = 2
_HEAD = struct.Struct("<QII")  # length, checksum of the payload, checksum of these two


# Arrays in MessagePack.


def pack_array(array: np.ndarray) -> list[Any]:
    """Packs an array [...] of any dtype as [dtype, shape, zlib of the bytes]."""
    return [array.dtype.name, list(array.shape), zlib.compress(array.tobytes(), 1)]


def unpack_array(packed: list[Any]) -> np.ndarray:
    """The array [...] that `pack_array` packed, in its dtype."""
    name, shape, data = packed
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape).copy()


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


def unpack_scaled(packed: list[Any], scale: int) -> np.ndarray:
    """The array float32[...] that `pack_scaled` packed."""
    array = unpack_array(packed)
    return array if array.dtype == np.float32 else _unscale(array, scale)


def pack_state(state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Packs every array of a state, by its path."""
    flat = tree_paths.flatten(jax.device_get(state))
    return {name: pack_array(np.asarray(leaf)) for name, leaf in flat.items()}


def unpack_state(packed: dict[str, Any], like: Any, path: object) -> Any:  # noqa: ANN401
    """The state that `pack_state` packed, on the devices of a fresh state.

    Args:
      packed: Arrays from `pack_state`.
      like: A fresh state of the same model.
      path: Path of the file, for the error message.

    Raises:
      ValueError: The arrays belong to another model.
    """
    arrays = {name: unpack_array(one) for name, one in packed.items()}
    flat = tree_paths.flatten(like)
    wrong = tree_paths.differences(arrays, flat)
    if wrong:
        raise ValueError(
            f"{path}: the state does not fit the model: {'; '.join(wrong)}; load the model that "
            "the file was written with"
        )
    leaves = [jax.device_put(arrays[name], leaf.sharding) for name, leaf in flat.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# Frames.


def pack_frame(fields: dict[str, Any]) -> bytes:
    """Packs a map as a frame."""
    payload = bytes(msgpack.packb(fields) or b"")
    head = struct.pack("<QI", len(payload), zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def read_frames(path: pathlib.Path, magic: bytes) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Frames of a file, each with the index of its first byte; None if it is cut off or blank.

    Raises:
      ValueError: The file is missing, of another kind, or damaged in the middle.
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
            if not data[start:].strip(b"\0"):  # a power failure after the file grew
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
    """Writes a file of one frame; the file is replaced atomically."""
    place = pathlib.Path(path)
    part = place.with_name(f"{place.name}.part")
    with part.open("wb") as file:
        file.write(magic + pack_frame(fields))
        file.flush()
        os.fsync(file.fileno())
    part.replace(place)


def read_file(path: str | os.PathLike, magic: bytes) -> dict[str, Any]:
    """Reads a file that `write_file` wrote.

    Raises:
      ValueError: The file is missing, of another kind or version, cut off or damaged.
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
      ValueError: Names both versions.
    """
    if fields.get("version") != VERSION:
        raise ValueError(
            f"{path}: got version {fields.get('version')}, wanted {VERSION}; use the release that "
            "wrote it"
        )
