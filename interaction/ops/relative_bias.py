"""Attention's bias by distance, whose profile each query mixes itself (Inkling).

A layer has a bank of profiles: biases for the distances 0 to `extent` - 1. A query's states of each
head mix them into one profile. Beyond the extent the bias is 0.
"""

import jax.numpy as jnp

from interaction.ops.dense import matmul
from interaction.types import Array


def block_bias(states: Array, bank: Array, first: Array | int, keys: int) -> Array:
    """The bias between consecutive queries and consecutive keys.

    Args:
      states: float[t, h, r], the queries' states.
      bank: float[r, extent].
      first: int32[], distance of the first query from the first key; may be negative.
      keys: Number of keys, s.

    Returns:
      float32[h, t, s]; 0 where the distance is negative or at least `extent`.
    """
    t, h, r = states.shape
    # Distances from the last key's to the last query's, one column each.
    distance = first - (keys - 1) + jnp.arange(t + keys - 1)
    inside = (distance >= 0) & (distance < bank.shape[1])
    profiles = jnp.take(bank, jnp.where(inside, distance, 0), axis=1)
    profiles = jnp.where(inside, profiles, jnp.zeros_like(profiles))
    rows = states.transpose(1, 0, 2).reshape(h * t, r)
    return _skew(matmul(rows, profiles).reshape(h, t, t + keys - 1))


def _skew(x: Array) -> Array:
    """[h, t, t + s - 1] to [h, t, s]: row i, key j takes column i - j + s - 1.

    Rows of one more column, read as rows of one column less, shift by one from row to row.
    """
    h, t, width = x.shape
    keys = width - t + 1
    x = jnp.flip(x, axis=2)  # row i, key j is now in column t - 1 - i + j
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 1))).reshape(h, t * (width + 1))
    x = x[:, t - 1 : t - 1 + t * width].reshape(h, t, width)
    return x[:, :, :keys]
