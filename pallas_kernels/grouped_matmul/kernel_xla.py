"""Grouped matrix multiplication in XLA, for CPUs: a loop over row tiles of one group each."""

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul import visits
from pallas_kernels.varying import vary, varying

# Rows of a tile. All products have this many, because XLA's dot on CPUs takes other paths for few
# rows, with other bits; a multiple of 16 lets it treat all rows of a tile alike.
_TILE = 64


def matmul(
    lhs: jax.Array,
    rhs: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
    *,
    transpose_rhs: bool,
    interpret: bool,
) -> jax.Array:
    """Rows times their group's weights.

    Args:
      lhs: [m, k], bfloat16 or float32, none of the sizes 0.
      rhs: [e, k, n], or [e, n, k] if transposed, in lhs' dtype.
      starts: int32[e] first row of each group, as `visits.group_bounds` gives them.
      ends: int32[e] row after each group's last.
      transpose_rhs: Whether rhs' last axis is contracted.
      interpret: Ignored.

    Returns:
      [m, n] in lhs' dtype, zero in rows of no group.
    """
    del interpret
    rows, k = lhs.shape
    group, first, count = visits.group_tiles(starts, ends, rows, _TILE)
    # Once here: in the loop each tile would convert and transpose its group's weights again.
    weights = rhs.astype(jnp.float32)
    weights = jnp.swapaxes(weights, 1, 2) if transpose_rhs else weights
    padded = jnp.pad(lhs, ((0, _TILE), (0, 0)))

    def tile(visit: jax.Array, out: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_slice(padded, (first[visit], 0), (_TILE, k)).astype(jnp.float32)
        product = jnp.matmul(own, weights[group[visit]], precision=jax.lax.Precision.HIGHEST)
        # Rows past the group's end are overwritten by the next group's tiles.
        return jax.lax.dynamic_update_slice(out, product.astype(out.dtype), (first[visit], 0))

    out = jnp.zeros((rows + _TILE, weights.shape[2]), lhs.dtype)
    out = jax.lax.fori_loop(0, count, tile, vary(out, varying(lhs)))
    return jnp.where(jnp.arange(rows)[:, None] < ends[-1], out[:rows], 0)


def outer(
    lhs: jax.Array, grad: jax.Array, starts: jax.Array, ends: jax.Array, *, interpret: bool
) -> jax.Array:
    """Each group's rows of lhs, transposed, times its rows of grad.

    Args:
      lhs: [m, k], bfloat16 or float32, none of the sizes 0.
      grad: [m, n] in lhs' dtype.
      starts: int32[e] first row of each group, as `visits.group_bounds` gives them.
      ends: int32[e] row after each group's last.
      interpret: Ignored.

    Returns:
      [e, k, n] in lhs' dtype, zero for groups without rows.
    """
    del interpret
    rows = lhs.shape[0]
    group, first, count = visits.group_tiles(starts, ends, rows, _TILE)
    operands = [jnp.pad(x, ((0, _TILE), (0, 0))) for x in (lhs, grad)]

    def tile(visit: jax.Array, out: jax.Array) -> jax.Array:
        own = (first[visit] + jnp.arange(_TILE) < ends[group[visit]])[:, None]
        left, right = (
            jnp.where(
                own, jax.lax.dynamic_slice(x, (first[visit], 0), (_TILE, x.shape[1])), 0
            ).astype(jnp.float32)
            for x in operands
        )
        product = jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)
        return out.at[group[visit]].add(product)

    out = jnp.zeros((starts.shape[0], lhs.shape[1], grad.shape[1]), jnp.float32)
    out = jax.lax.fori_loop(0, count, tile, vary(out, varying(lhs)))
    return out.astype(lhs.dtype)
