"""How the arrays of a released Inkling checkpoint lie in ours, and back; read in parts."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from interaction.pretrained.lazy_array import Index

Fetch = Callable[[Index], np.ndarray]  # reads a part of an array
Shape = tuple[int, ...]


class Form(Protocol):
    """The form of one of our arrays in the checkpoint."""

    def shape(self, released: Shape) -> Shape:
        """Our shape for a released one."""

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """A part of our array, from the released one."""

    def write(self, fetch: Fetch, target: np.ndarray, index: Index) -> None:
        """Fills our share of a part `target` of the released array, from our array."""


def whole(shape: Shape) -> Index:
    """The index of all of an array."""
    return tuple(slice(0, size) for size in shape)


@dataclasses.dataclass(frozen=True)
class Moved:
    """The same numbers with their axes in another order, of which some have size 1.

    `axes[i]` is the released axis of our axis i. Axes of size 1 that are not ours are dropped.
    """

    axes: tuple[int, ...]

    def shape(self, released: Shape) -> Shape:
        """See `Form`."""
        return tuple(released[axis] for axis in self.axes)

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """See `Form`."""
        place = [slice(0, 1)] * len(released)
        for axis, part in zip(self.axes, index, strict=True):
            place[axis] = part
        found = fetch(tuple(place))
        rest = [axis for axis in range(len(released)) if axis not in self.axes]
        return found.transpose(*self.axes, *rest).reshape([found.shape[a] for a in self.axes])

    def write(self, fetch: Fetch, target: np.ndarray, index: Index) -> None:
        """See `Form`."""
        ours = fetch(tuple(index[axis] for axis in self.axes))
        rest = [axis for axis in range(target.ndim) if axis not in self.axes]
        target.transpose(*self.axes, *rest)[...] = ours.reshape(*ours.shape, *[1] * len(rest))


SAME_1, SAME_2 = Moved((0,)), Moved((0, 1))
TRANSPOSED = Moved((1, 0))  # torch's linear layers are [out, in], ours [in, out]
TAPS = Moved((2, 0))  # a depthwise convolution [channels, 1, taps], ours [taps, channels]
EXPERTS = Moved((0, 2, 1))  # [experts, out, in], ours [experts, in, out]


@dataclasses.dataclass(frozen=True)
class Half:
    """Every second output of a layer whose gate and up projections are interleaved.

    Released: [out, in], or [experts, out, in]; ours: [in, out / 2], or [experts, in, out / 2].
    """

    which: int  # 0 for gate, 1 for up

    def shape(self, released: Shape) -> Shape:
        """See `Form`."""
        *lead, out, inputs = released
        return (*lead, inputs, out // 2)

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """See `Form`."""
        *lead, inputs, out = index
        both = fetch((*lead, slice(2 * out.start, 2 * out.stop), inputs))
        return both[..., self.which :: 2, :].swapaxes(-1, -2)

    def write(self, fetch: Fetch, target: np.ndarray, index: Index) -> None:
        """See `Form`; the part begins at an even output."""
        *lead, out, inputs = index
        ours = fetch((*lead, inputs, slice(out.start // 2, (out.stop + 1) // 2)))
        target[..., self.which :: 2, :] = ours.swapaxes(-1, -2)


@dataclasses.dataclass(frozen=True)
class Shared:
    """The shared experts side by side: ours [in, experts * out / 2], released [experts, out, in]."""

    which: int

    def shape(self, released: Shape) -> Shape:
        """See `Form`."""
        experts, out, inputs = released
        return inputs, experts * out // 2

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """See `Form`."""
        found = fetch(whole(released))[:, self.which :: 2]
        return found.reshape(-1, found.shape[-1]).T[index]

    def write(self, fetch: Fetch, target: np.ndarray, index: Index) -> None:
        """See `Form`; the part is all of the array."""
        experts, out, inputs = target.shape
        ours = fetch(whole((inputs, experts * out // 2)))
        target[:, self.which :: 2] = ours.T.reshape(experts, -1, inputs)


@dataclasses.dataclass(frozen=True)
class SharedDown:
    """The shared experts' last layers: ours [experts * in, out], released [experts, out, in]."""

    def shape(self, released: Shape) -> Shape:
        """See `Form`."""
        experts, out, inputs = released
        return experts * inputs, out

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """See `Form`."""
        found = fetch(whole(released)).swapaxes(1, 2)
        return found.reshape(-1, released[1])[index]

    def write(self, fetch: Fetch, target: np.ndarray, index: Index) -> None:
        """See `Form`; the part is all of the array."""
        experts, out, inputs = target.shape
        ours = fetch(whole((experts * inputs, out))).reshape(experts, inputs, out)
        target[...] = ours.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The table of dMel levels: ours [mels, levels, d], released [mels * levels, d]."""

    mels: int

    def shape(self, released: Shape) -> Shape:
        """See `Form`."""
        return self.mels, released[0] // self.mels, released[1]

    def read(self, fetch: Fetch, released: Shape, index: Index) -> np.ndarray:
        """See `Form`."""
        return fetch(whole(released)).reshape(self.shape(released))[index]

    def write(self, fetch: Fetch, target: np.ndarray, index: Index) -> None:
        """See `Form`; the part is all of the array."""
        target[...] = fetch(whole(self.shape(target.shape))).reshape(target.shape)
