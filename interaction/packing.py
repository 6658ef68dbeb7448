"""Many arrays as few: what a jitted call costs the host grows with its arguments."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from interaction.types import Array, Params


class Limits(NamedTuple):
    """Up to which sizes arrays are joined, in bytes; a larger one might be copied out again."""

    vector: int  # float32 arrays end to end, where each is cut out and fused with what reads it
    stack: int  # arrays of one shape and dtype on top of each other, where one is read in place


# XLA's CPU backend copies a matrix out of a stack before it multiplies.
LIMITS = {
    "cpu": Limits(16 << 10, 0),
    "gpu": Limits(16 << 10, 64 << 20),
    "tpu": Limits(4 << 20, 64 << 20),
}


class Packed(NamedTuple):
    """The arrays that a call gets, or their `PartitionSpec`s."""

    vector: Any  # float32[n]
    stacks: tuple
    others: tuple


def pack(
    params: Params,
    specs: Any,  # noqa: ANN401
    limits: Limits,
) -> tuple[Callable[[Params], Packed], Callable[[Packed], Params], Packed]:
    """Plans how to join the leaves of a tree.

    Args:
      params: Any tree of arrays, or of their shapes and dtypes.
      specs: Their `PartitionSpec`s; what is split over devices only joins what is split alike.
      limits: See `LIMITS`.

    Returns:
      A function that joins such trees, one that takes them apart again, both to be traced, and
      the specs of what is joined.
    """
    leaves, structure = jax.tree.flatten(params)
    flat_specs = structure.flatten_up_to(specs)
    size = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    inline = [
        i
        for i, leaf in enumerate(leaves)
        if leaf.dtype == jnp.float32 and size[i] < limits.vector and not any(flat_specs[i])
    ]
    alike: dict[tuple, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if i not in inline and size[i] < limits.stack:
            alike.setdefault((leaf.shape, str(leaf.dtype), flat_specs[i]), []).append(i)
    groups = [group for group in alike.values() if len(group) > 1]
    joined = {i for group in (inline, *groups) for i in group}
    others = [i for i in range(len(leaves)) if i not in joined]

    def join(params: Params) -> Packed:
        leaves = structure.flatten_up_to(params)
        parts = [leaves[i].ravel() for i in inline]
        return Packed(
            jnp.concatenate([jnp.zeros(0, jnp.float32), *parts]),
            tuple(jnp.stack([leaves[i] for i in group]) for group in groups),
            tuple(leaves[i] for i in others),
        )

    def take_apart(packed: Packed) -> Params:
        found: dict[int, Array] = dict(zip(others, packed.others, strict=True))
        for group, stack in zip(groups, packed.stacks, strict=True):
            found |= {i: stack[place] for place, i in enumerate(group)}
        start = 0
        for i in inline:
            count = math.prod(leaves[i].shape)
            found[i] = packed.vector[start : start + count].reshape(leaves[i].shape)
            start += count
        return jax.tree.unflatten(structure, [found[i] for i in range(len(leaves))])

    packed_specs = Packed(
        PartitionSpec(),
        tuple(PartitionSpec(None, *flat_specs[group[0]]) for group in groups),
        tuple(flat_specs[i] for i in others),
    )
    return join, take_apart, packed_specs
