"""Positions that exist, moved together: below this, distance is a difference of indices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.types import Array


class Compact(NamedTuple):
    """Positions of sessions; those that exist come first, in their order."""

    x: Array  # [b, t, ...]
    valid: Array  # bool[b, t], positions that exist
    place: Array  # int32[b, t], where each position went; -1 if it does not exist


def compact(x: Array, exists: Array) -> Compact:
    """Moves the positions that exist to the front of their session.

    Args:
      x: [b, t, ...] of any dtype.
      exists: bool[b, t].

    Returns:
      The same positions; those that do not exist are zero.
    """
    source = jnp.argsort(~exists, axis=1, stable=True)
    valid = jnp.arange(x.shape[1]) < jnp.sum(exists, axis=1, keepdims=True)
    moved = jax.vmap(lambda row, order: row[order])(x, source)
    moved = jnp.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), moved, 0)
    place = jnp.cumsum(exists, axis=1, dtype=jnp.int32) - 1
    return Compact(moved, valid, jnp.where(exists, place, -1))
