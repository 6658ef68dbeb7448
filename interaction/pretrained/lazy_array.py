"""Arrays that stay in their files until they are indexed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from operator import add

import numpy as np
from numpy.typing import DTypeLike

Index = tuple[slice, ...]  # one for each dimension


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file: an index reads that part of it alone.

    It stands where a numpy or jax array does as a leaf of a tree of parameters.
    """

    shape: tuple[int, ...]
    dtype: np.dtype  # that parts are handed out in, cast as they are read
    piece: tuple[int, ...]  # shape of the parts that it is best read in, one after another
    read: Callable[[Index], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def astype(self, dtype: DTypeLike) -> "LazyArray":
        """The same array, handed out in another dtype; nothing is read."""
        return dataclasses.replace(self, dtype=np.dtype(dtype))

    def __getitem__(self, index: Index) -> np.ndarray:
        """One part, a slice for each dimension."""
        return self.read(index).astype(self.dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        whole = self[tuple(slice(0, size) for size in self.shape)]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def pieces(self) -> Iterator[Index]:
        """Indices that together read every element once, `piece` at a time."""
        starts = (range(0, *sizes) for sizes in zip(self.shape, self.piece, strict=True))
        for start in itertools.product(*starts):
            yield tuple(map(slice, start, map(min, self.shape, map(add, start, self.piece))))
