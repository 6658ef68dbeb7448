"""The reference of `grouped_matmul` in plain jnp: every group's weights on every row."""

import functools

import jax
import jax.numpy as jnp

_ROWS = 16  # rows that are computed at once


def grouped_matmul(lhs: jax.Array, rhs: jax.Array, starts: jax.Array, ends: jax.Array) -> jax.Array:
    """Multiplies rows by the weights of their groups.

    Args:
      lhs: bfloat16 or float32 [m, k].
      rhs: [e, k, n] in lhs' dtype.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.

    Returns:
      [m, n] in lhs' dtype, zero in rows that belong to no group; summed in float32.
    """
    rows, k = lhs.shape
    # The order of summation in XLA's dot depends on the number of rows, so it is kept constant.
    lhs = jnp.pad(lhs, ((0, -rows % _ROWS), (0, 0)))
    row = jnp.arange(len(lhs))[:, None]
    out = jnp.zeros((len(lhs), rhs.shape[2]), jnp.float32)
    for group in range(rhs.shape[0]):
        mine = (row >= starts[group]) & (row < ends[group])
        # Masked before and after the product: rows that belong to no group may be NaN, and their
        # gradient must be zero.
        own = jnp.where(mine, lhs, 0).astype(jnp.float32)
        weights = rhs[group].astype(jnp.float32)
        multiply = functools.partial(jnp.matmul, b=weights, precision=jax.lax.Precision.HIGHEST)
        product = jax.lax.map(multiply, own.reshape(-1, _ROWS, k)).reshape(out.shape)
        out = jnp.where(mine, product, out)
    return out[:rows].astype(lhs.dtype)
