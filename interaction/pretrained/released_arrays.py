"""How the arrays of a released Inkling checkpoint lie in ours, and back; read in parts."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from interaction.pretrained.lazy_array import Index
from interaction.types import Special

Fetch = Callable[[Index], np.ndarray]  # reads a part of an array
Shape = tuple[int, ...]


class Form(Protocol):
    """The form of one of our arrays in the checkpoint.

    Several of our arrays may lie in one released array.
    """

    def released(self, ours: Shape) -> Shape:
        """The released shape of an array of ours."""
        ...

    def first_axis(self, ours: Shape) -> int:
        """Our axis along which a part reads a contiguous part of the released array."""
        ...

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads a part of our array from the released one.

        Args:
          fetch: Reads a part of the released array.
          released: Shape of the released array.
          index: The part of our array.

        Returns:
          [...] of the part's shape, in the stored dtype.
        """
        ...

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills what is ours in a part of the released array.

        Args:
          fetch: Reads a part of our array.
          released: Shape of the released array.
          index: The part of the released array.
          part: [...] of the stored dtype, that part, which is written to.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Moved:
    """The same numbers with their axes in another order; released axes of size 1 are dropped.

    `axes[i]` is the released axis of our axis i.
    """

    axes: tuple[int, ...]

    def _rank(self) -> int:
        return max(self.axes) + 1

    def released(self, ours: Shape) -> Shape:
        """See `Form`."""
        shape = [1] * self._rank()
        for axis, size in zip(self.axes, ours, strict=True):
            shape[axis] = size
        return tuple(shape)

    def first_axis(self, ours: Shape) -> int:
        """See `Form`."""
        return self.axes.index(0)

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads [...] in the stored dtype, see `Form`."""
        place = [slice(0, 1)] * self._rank()
        for axis, part in zip(self.axes, index, strict=True):
            place[axis] = part
        return self._ours(fetch(tuple(place)))

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills [...] of the stored dtype, see `Form`."""
        self._ours(part)[...] = fetch(tuple(index[axis] for axis in self.axes))

    def _ours(self, part: np.ndarray) -> np.ndarray:
        dropped = tuple(axis for axis in range(part.ndim) if axis not in self.axes)
        order = np.argsort(np.argsort(self.axes))
        return part.squeeze(dropped).transpose(order)


SAME_1, SAME_2 = Moved((0,)), Moved((0, 1))
TRANSPOSED = Moved((1, 0))  # torch's linear layers are [out, in], ours [in, out]
TAPS = Moved((2, 0))  # a depthwise convolution [channels, 1, taps], ours [taps, channels]
EXPERTS = Moved((0, 2, 1))  # [experts, out, in], ours [experts, in, out]


@dataclasses.dataclass(frozen=True)
class Half:
    """Every second output of a layer whose gate and up projections are interleaved.

    Released: [2 * out, in], or [experts, 2 * out, in]; ours: [in, out], or [experts, in, out].
    """

    which: int  # 0 for gate, 1 for up

    def released(self, ours: Shape) -> Shape:
        """See `Form`."""
        *lead, inputs, out = ours
        return (*lead, 2 * out, inputs)

    def first_axis(self, ours: Shape) -> int:
        """See `Form`."""
        return 0 if len(ours) > 2 else 1

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads [...] in the stored dtype, see `Form`."""
        *lead, inputs, out = index
        both = fetch((*lead, slice(2 * out.start, 2 * out.stop), inputs))
        return both[..., self.which :: 2, :].swapaxes(-1, -2)

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills [...] of the stored dtype, see `Form`."""
        *lead, rows, inputs = index
        mine, out = _every_second(self.which, rows)
        part[..., mine, :] = fetch((*lead, inputs, out)).swapaxes(-1, -2)


def _every_second(which: int, rows: slice) -> tuple[slice, slice]:
    """Among rows 2 * i + `which`: their places in the part `rows`, and the slice of i."""
    skipped = (which - rows.start) % 2
    return slice(skipped, None, 2), slice((rows.start + skipped) // 2, (rows.stop + 1 - which) // 2)


@dataclasses.dataclass(frozen=True)
class SharedHalf:
    """`Half` of the shared experts, which are side by side in ours.

    Released: [experts, 2 * out, in]; ours: [in, experts * out].
    """

    which: int  # 0 for gate, 1 for up
    experts: int

    def released(self, ours: Shape) -> Shape:
        """See `Form`."""
        inputs, columns = ours
        return self.experts, 2 * columns // self.experts, inputs

    def first_axis(self, ours: Shape) -> int:
        """See `Form`."""
        return 1

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads [...] in the stored dtype, see `Form`."""
        inputs, columns = index
        parts = [
            fetch((expert, slice(2 * out.start, 2 * out.stop), inputs))[0, self.which :: 2]
            for expert, out in _by_expert(columns, released[1] // 2)
        ]
        return np.concatenate(parts).T

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills [...] of the stored dtype, see `Form`."""
        experts, rows, inputs = index
        mine, out = _every_second(self.which, rows)
        for place, expert in enumerate(range(experts.start, experts.stop)):
            before = expert * released[1] // 2
            columns = slice(before + out.start, before + out.stop)
            part[place, mine] = fetch((inputs, columns)).T


@dataclasses.dataclass(frozen=True)
class SharedDown:
    """The shared experts' last layers: released [experts, out, in], ours [experts * in, out]."""

    experts: int

    def released(self, ours: Shape) -> Shape:
        """See `Form`."""
        rows, out = ours
        return self.experts, out, rows // self.experts

    def first_axis(self, ours: Shape) -> int:
        """See `Form`."""
        return 0

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads [...] in the stored dtype, see `Form`."""
        rows, out = index
        parts = [fetch((expert, out, one))[0].T for expert, one in _by_expert(rows, released[2])]
        return np.concatenate(parts)

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills [...] of the stored dtype, see `Form`."""
        experts, out, inputs = index
        for place, expert in enumerate(range(experts.start, experts.stop)):
            before = expert * released[2]
            part[place] = fetch((slice(before + inputs.start, before + inputs.stop), out)).T


def _by_expert(rows: slice, size: int) -> list[tuple[slice, slice]]:
    """The parts of rows of experts side by side: the expert, and its own rows."""
    return [
        (slice(expert, expert + 1), slice(max(0, rows.start - first), min(size, rows.stop - first)))
        for expert in range(rows.start // size, -(-rows.stop // size))
        for first in [expert * size]
    ]


@dataclasses.dataclass(frozen=True)
class Levels:
    """The table of dMel levels: released [mels * levels, d], ours [mels, levels, d]."""

    mels: int

    def released(self, ours: Shape) -> Shape:
        """See `Form`."""
        return ours[0] * ours[1], ours[2]

    def first_axis(self, ours: Shape) -> int:
        """See `Form`."""
        return 0

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads [...] in the stored dtype, see `Form`."""
        mels, levels, dims = index
        count = released[0] // self.mels
        rows = fetch((slice(mels.start * count, mels.stop * count), dims))
        return rows.reshape(-1, count, rows.shape[1])[:, levels]

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills [...] of the stored dtype, see `Form`."""
        rows, dims = index
        count = released[0] // self.mels
        first = rows.start // count
        ours = fetch((slice(first, -(-rows.stop // count)), slice(0, count), dims))
        before = rows.start - first * count
        part[...] = ours.reshape(-1, part.shape[1])[before : before + len(part)]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Rows of a vocabulary, whose last ids become our special tokens, the first ones.

    Our id i is the released id (i - 8) modulo the vocabulary.
    """

    form: Moved  # of the matrix; the released axis 0 is the vocabulary

    def released(self, ours: Shape) -> Shape:
        """See `Form`."""
        return self.form.released(ours)

    def first_axis(self, ours: Shape) -> int:
        """See `Form`."""
        return self.form.first_axis(ours)

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """Reads [...] in the stored dtype, see `Form`."""
        axis = self.form.axes.index(0)
        parts = []
        for ids in _shifted(index[axis], -Special.COUNT, released[0]):
            place = (*index[:axis], ids, *index[axis + 1 :])
            parts.append(self.form.read(fetch, released, place))
        return np.concatenate(parts, axis)

    def write(self, fetch: Fetch, released: Shape, index: Index, part: np.ndarray) -> None:
        """Fills [...] of the stored dtype, see `Form`."""
        done = 0
        for ids in _shifted(index[0], Special.COUNT, released[0]):
            size = ids.stop - ids.start
            self.form.write(fetch, released, (ids, *index[1:]), part[done : done + size])
            done += size


def _shifted(ids: slice, by: int, vocab: int) -> list[slice]:
    """The ids that lie `by` after those of a slice, modulo the vocabulary, in order."""
    start, stop = ids.start + by, ids.stop + by
    bounds = [(start + vocab, min(stop, 0) + vocab)]  # before the first id
    bounds += [(max(start, 0), min(stop, vocab)), (max(start, vocab) - vocab, stop - vocab)]
    return [slice(first, last) for first, last in bounds if first < last]
