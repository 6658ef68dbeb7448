"""Matrix product with a weight over the last axis."""

import jax.numpy as jnp

from interaction.types import Array

# XLA's dot on CPUs takes the rows left over from tiles of a few rows along another path, with
# other bits. In a multiple of 12 none are left over, so a session's bits keep to its own row.
_ROWS = 12


def dense(x: Array, weight: Array) -> Array:
    """Multiplies [..., d] by [d, f], as one product of two matrices.

    Flattening first keeps XLA's CPU backend from transposing the activations to form the
    weight's gradient, which took twice as long. The leading axis counts sessions.

    Returns:
      [..., f].
    """
    rows = x.reshape(-1, x.shape[-1])
    left_over = -len(rows) % _ROWS if len(x) > 1 else 0
    padded = jnp.pad(rows, ((0, left_over), (0, 0))) if left_over else rows
    return (padded @ weight)[: len(rows)].reshape(*x.shape[:-1], weight.shape[-1])
