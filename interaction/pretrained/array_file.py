"""Safetensors files of float arrays that are larger than the memory, read and written in parts."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from interaction.pretrained.lazy_array import Index, LazyArray

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_CODES = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"]}  # names in safetensors


def open_arrays(path: str | os.PathLike, most: int) -> dict[str, LazyArray]:
    """The arrays of a file, by name, in their stored dtypes.

    Args:
      path: Path of the file, which has to stay as it is while the arrays are in use.
      most: Most bytes of a piece of an array.

    Raises:
      ValueError: The file is missing, cut off, or has arrays that are not float32 or bfloat16.
    """
    try:
        with safe_open(path, "numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}
            heads = {name: (one.get_dtype(), one.get_shape()) for name, one in found.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: got a file that is missing, cut off or not safetensors ({error}); copy it "
            "again"
        ) from error
    wrong = [
        f"{name} is {code}{shape}" for name, (code, shape) in heads.items() if code not in _CODES
    ]
    if wrong:
        raise ValueError(
            f"{path}: {'; '.join(wrong[:4])}, wanted F32 or BF16: quantised weights (NVFP4, MXFP8, "
            "FP8) are not read; take the file with the unquantised ones"
        )
    return {
        name: LazyArray(
            tuple(shape), kind, _contiguous(shape, kind, most), partial(_read, path, name)
        )
        for name, (code, shape) in heads.items()
        for kind in [_CODES[code]]
    }


def _read(path: str | os.PathLike, name: str, index: Index) -> np.ndarray:
    # Pages of a mapped file count as memory of this process: it is mapped for this part alone.
    with safe_open(path, "numpy") as file:
        return file.get_slice(name)[index]


def _contiguous(shape: list[int], dtype: np.dtype, most: int) -> tuple[int, ...]:
    """Shape of the largest contiguous part of at most `most` bytes, or of one entry."""
    piece = list(shape)
    for dim, size in enumerate(shape):
        rest = dtype.itemsize * math.prod(shape[dim + 1 :])
        piece[dim] = max(1, min(size, most // max(1, rest)))
    return tuple(piece)


def write_arrays(
    path: pathlib.Path,
    flat: Mapping[str, Any],
    dtype: np.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], Any] = lambda size: None,
) -> list[str]:
    """Writes arrays in parts: length of the header, header, arrays.

    Args:
      path: Path of the file.
      flat: Arrays by name; a `LazyArray` is read in its pieces.
      dtype: Dtype of the stored arrays, one of `DTYPES`; None: each array keeps its own.
      metadata: Text that the header keeps.
      progress: Called with the number of bytes of each part that was written.

    Returns:
      Names of the arrays that are not finite.
    """
    codes = {dtype: code for code, dtype in _CODES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end, bad = 0, []
    for name, leaf in flat.items():
        kind, shape = np.dtype(dtype or leaf.dtype), list(leaf.shape)
        start, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": codes[kind], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        first = file.tell()
        for name, leaf in flat.items():
            start, finite = first + header[name]["data_offsets"][0], True
            for index, piece in _pieces(leaf):
                piece = piece.astype(dtype or piece.dtype, copy=False)  # may become infinite here
                finite &= bool(np.all(np.isfinite(piece)))
                for offset, run in _runs(leaf.shape, index, piece):
                    file.seek(start + offset)
                    file.write(run)
                progress(piece.nbytes)
            bad += [] if finite else [name]
    return bad


def _pieces(leaf: Any) -> Iterator[tuple[Index, np.ndarray]]:  # noqa: ANN401
    if isinstance(leaf, LazyArray):
        yield from ((index, leaf[index]) for index in leaf.pieces())
    else:
        yield tuple(slice(0, size) for size in leaf.shape), np.asarray(leaf)


def _runs(shape: tuple[int, ...], index: Index, piece: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """The contiguous runs of a piece in its array, each after the byte at which it starts."""
    split = [dim for dim, size in enumerate(shape) if piece.shape[dim] < size]
    outer = split[-1] if split else 0
    strides = [math.prod(shape[dim + 1 :]) * piece.itemsize for dim in range(len(shape))]
    first = sum(part.start * stride for part, stride in zip(index, strides, strict=True))
    for at in np.ndindex(piece.shape[:outer]):
        yield first + sum(i * s for i, s in zip(at, strides, strict=False)), piece[at].tobytes()
