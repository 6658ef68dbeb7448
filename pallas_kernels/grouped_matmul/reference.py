"""Grouped matrix multiplication in plain jnp: every group's weights on every row, then a choice."""

import functools

import jax
import jax.numpy as jnp

_ROWS = 16


def grouped_matmul(lhs: jax.Array, rhs: jax.Array, starts: jax.Array, ends: jax.Array) -> jax.Array:
    """Rows times their group's weights.

    Args:
      lhs: [m, k], bfloat16 or float32.
      rhs: [e, k, n] in lhs' dtype.
      starts: int32[e] first row of each group.
      ends: int32[e] row after each group's last.

    Returns:
      [m, n] in lhs' dtype, zero in rows of no group; summed in float32.
    """
    rows, k = lhs.shape
    # XLA's dot sums in an order that depends on the number of rows: give it always as many.
    lhs = jnp.pad(lhs, ((0, -rows % _ROWS), (0, 0)))
    row = jnp.arange(len(lhs))[:, None]
    out = jnp.zeros((len(lhs), rhs.shape[2]), jnp.float32)
    for group in range(rhs.shape[0]):
        mine = (row >= starts[group]) & (row < ends[group])
        # Selected before and after: rows of no group may hold anything, and get no gradient.
        own = jnp.where(mine, lhs, 0).astype(jnp.float32)
        weights = rhs[group].astype(jnp.float32)
        multiply = functools.partial(jnp.matmul, b=weights, precision=jax.lax.Precision.HIGHEST)
        product = jax.lax.map(multiply, own.reshape(-1, _ROWS, k)).reshape(out.shape)
        out = jnp.where(mine, product, out)
    return out[:rows].astype(lhs.dtype)
