"""Many small arrays as one: what a jitted call costs the host grows with its arguments."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from interaction.types import Array, Params

_SMALL = 16 << 10  # bytes; a larger array might be copied out, where a small one is fused

Packed = tuple[Array, tuple[Array, ...]]


def pack(params: Params) -> tuple[Packed, Callable[[Packed], Params]]:
    """Joins the small float32 leaves of a tree.

    Args:
      params: Any tree of arrays.

    Returns:
      One vector float32[n] and the other leaves, and the function that makes `params` of them.
    """
    leaves, structure = jax.tree.flatten(params)
    small = [leaf.dtype == jnp.float32 and leaf.nbytes < _SMALL for leaf in leaves]
    shapes = [leaf.shape for leaf in leaves]
    parts = [leaf.ravel() for leaf, joined in zip(leaves, small, strict=True) if joined]
    others = tuple(leaf for leaf, joined in zip(leaves, small, strict=True) if not joined)

    def unpack(packed: Packed) -> Params:
        vector, rest = packed[0], iter(packed[1])
        found, start = [], 0
        for joined, shape in zip(small, shapes, strict=True):
            size = math.prod(shape) if joined else 0
            found.append(vector[start : start + size].reshape(shape) if joined else next(rest))
            start += size
        return jax.tree.unflatten(structure, found)

    return (jnp.concatenate([jnp.zeros(0, jnp.float32), *parts]), others), unpack
