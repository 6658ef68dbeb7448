"""Arrays in files, read when they are indexed."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from operator import add

import numpy as np
from numpy.typing import DTypeLike

Index = tuple[slice, ...]  # one for each dimension


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file: indexing reads only the indexed part.

    It replaces a NumPy or jax array as a leaf of a tree of parameters.
    """

    shape: tuple[int, ...]
    dtype: np.dtype  # dtype to which parts are cast as they are read
    piece: tuple[int, ...]  # shape of the parts in which the array is best read
    read: Callable[[Index], np.ndarray]  # its slices have a start and a stop, and no step

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize

    def astype(self, dtype: DTypeLike) -> "LazyArray":
        """The same array with parts in another dtype; nothing is read."""
        return dataclasses.replace(self, dtype=np.dtype(dtype))

    def __getitem__(self, index: Index) -> np.ndarray:
        """Reads one part, given by a slice of step 1 for each dimension."""
        bounds = [part.indices(size) for part, size in zip(index, self.shape, strict=True)]
        shape = [max(0, stop - start) for start, stop, _ in bounds]
        if 0 in shape:  # files refuse to read nothing
            return np.empty(shape, self.dtype)
        part = self.read(tuple(slice(start, stop) for start, stop, _ in bounds))
        return part.astype(self.dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Reads all of it."""
        array = self[tuple(slice(0, size) for size in self.shape)]
        return array if dtype is None else array.astype(dtype, copy=False)

    def pieces(self) -> Iterator[Index]:
        """Indices of parts of shape `piece` that together cover every element once."""
        starts = (range(0, *sizes) for sizes in zip(self.shape, self.piece, strict=True))
        for start in itertools.product(*starts):
            yield tuple(map(slice, start, map(min, self.shape, map(add, start, self.piece))))
