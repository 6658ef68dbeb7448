"""Files of frames: MessagePack maps with checksums, and arrays inside them.

A file is a magic number, then for each frame its length, its checksums and its payload. Records of
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


# Arrays, as MessagePack has them.


def pack_array(array: np.ndarray) -> list[Any]:
    """[dtype, shape, zlib of the bytes]; [] stands for None."""
    return [array.dtype.name, list(array.shape), zlib.compress(array.tobytes(), 1)]


def unpack_array(packed: list[Any]) -> np.ndarray:
    """What `pack_array` packed."""
    name, shape, data = packed
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape).copy()


def pack_scaled(array: np.ndarray, dtype: type, scale: int) -> list[Any]:
    """float32 as integers over `scale` if they give the same bits, else as it is."""
    limits = np.iinfo(dtype)
    whole = np.clip(np.rint(array * np.float32(scale)), limits.min, limits.max).astype(dtype)
    same = np.array_equal(_unscale(whole, scale).view(np.uint32), array.view(np.uint32))
    return pack_array(whole if same else array)


def _unscale(whole: np.ndarray, scale: int) -> np.ndarray:
    return whole.astype(np.float32) / np.float32(scale)


def unpack_scaled(packed: list[Any], scale: int) -> np.ndarray:
    """What `pack_scaled` packed, float32[...]."""
    array = unpack_array(packed)
    return array if array.dtype == np.float32 else _unscale(array, scale)


def pack_state(state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Every array of a state, by its path."""
    flat = tree_paths.flatten(jax.device_get(state))
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
    flat = tree_paths.flatten(like)
    wrong = tree_paths.differences(arrays, flat)
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
