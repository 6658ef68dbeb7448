"""Joins many arrays into few: a jitted call costs the host time for each argument."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interaction.types import Array, Params


class Limits(NamedTuple):
    """Sizes in bytes below which arrays are joined; larger ones might be copied out again."""

    vector: int  # of arrays of one dtype in one vector: cutting one out is fused with its use
    stack: int  # of arrays of one shape and dtype in one stack: each is read in place


# XLA's CPU backend copies a matrix out of a stack before it multiplies.
LIMITS = {
    "cpu": Limits(16 << 10, 0),
    "gpu": Limits(16 << 10, 64 << 20),
    "tpu": Limits(4 << 20, 64 << 20),
}


class Packed(NamedTuple):
    """The joined arrays, or their `PartitionSpec`s."""

    vectors: tuple  # float32[n] and bfloat16[n], where there are such arrays
    stacks: tuple
    others: tuple


class Packing:
    """A plan of how the leaves of a tree are joined."""

    def __init__(self, params: Params, specs: Any, limits: Limits) -> None:  # noqa: ANN401
        """Makes the plan.

        Args:
          params: Any tree of arrays, or of their shapes and dtypes.
          specs: Their `PartitionSpec`s; arrays are only joined with arrays that are split alike.
          limits: See `LIMITS`.
        """
        self._leaves, self._structure = jax.tree.flatten(params)
        flat = self._structure.flatten_up_to(specs)
        small: dict[str, list[int]] = {}
        alike: dict[tuple, list[int]] = {}
        for i, leaf in enumerate(self._leaves):
            size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            if _joins(leaf.dtype) and size < limits.vector and not any(flat[i]):
                small.setdefault(str(leaf.dtype), []).append(i)
            elif size < limits.stack:
                alike.setdefault((leaf.shape, str(leaf.dtype), flat[i]), []).append(i)
        self._groups = [group for group in alike.values() if len(group) > 1]
        self._inline = [small[dtype] for dtype in sorted(small)]
        joined = {i for group in (*self._inline, *self._groups) for i in group}
        self._others = [i for i in range(len(self._leaves)) if i not in joined]
        self.specs = Packed(
            (PartitionSpec(),) * len(self._inline),
            tuple(PartitionSpec(None, *flat[group[0]]) for group in self._groups),
            tuple(flat[i] for i in self._others),
        )

    def join(self, params: Params, mesh: Mesh) -> Packed:
        """Joins a tree whose arrays are on a mesh; arrays that are not joined are not copied."""
        leaves = self._structure.flatten_up_to(params)
        inline = [[leaves[i] for i in group] for group in self._inline]
        groups = [[leaves[i] for i in group] for group in self._groups]
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)
        join = jax.jit(_join, out_shardings=(where.vectors, where.stacks))
        vectors, stacks = join(inline, groups)
        return Packed(vectors, stacks, tuple(leaves[i] for i in self._others))

    def take_apart(self, packed: Packed) -> Params:
        """The tree that was joined; for use inside `jax.jit`."""
        found: dict[int, Array] = dict(zip(self._others, packed.others, strict=True))
        for group, stack in zip(self._groups, packed.stacks, strict=True):
            found |= {i: stack[place] for place, i in enumerate(group)}
        for group, vector in zip(self._inline, packed.vectors, strict=True):
            start = 0
            for i in group:
                shape = self._leaves[i].shape
                found[i] = vector[start : start + math.prod(shape)].reshape(shape)
                start += math.prod(shape)
        return jax.tree.unflatten(self._structure, [found[i] for i in range(len(found))])


def _joins(dtype: np.dtype) -> bool:
    return dtype in (jnp.float32, jnp.bfloat16)


def _join(
    inline: list[list[Array]], groups: list[list[Array]]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    vectors = tuple(jnp.concatenate([leaf.ravel() for leaf in group]) for group in inline)
    return vectors, tuple(jnp.stack(group) for group in groups)
