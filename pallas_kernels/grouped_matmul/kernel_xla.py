"""Grouped matrix multiplication in XLA, for CPUs: a loop over groups and over their row tiles.

A group's weights are copied once for all of its tiles. The last tile of a group may extend past the
group's end; only its rows of the group are written. A tile that would extend past the last row
begins earlier.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.varying import vary, varying

# Rows of a tile, where groups have many rows and where they have few. XLA's dot on CPUs uses other
# code for fewer than 12 rows, which rounds differently. With a multiple of 12, it uses the same
# code for all rows of a tile, and the same for both tiles.
_TILE = 48
_SMALL_TILE = 12
_OUTER_TILE = 80  # rows that one product sums for the gradient of the weights


def matmul(
    lhs: jax.Array,
    rhs: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
    *,
    transpose_rhs: bool,
    interpret: bool,
) -> jax.Array:
    """Multiplies rows by the weights of their groups.

    Args:
      lhs: bfloat16 or float32 [m, k], no size 0.
      rhs: [e, k, n], or [e, n, k] if transposed, in lhs' dtype.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.
      transpose_rhs: Whether to contract the last axis of rhs.
      interpret: Unused; it is an argument of all implementations.

    Returns:
      [m, n] in lhs' dtype, zero in rows that belong to no group.
    """
    del interpret
    size = _TILE if len(lhs) >= _TILE * len(rhs) else _SMALL_TILE
    rows, padded = len(lhs), _at_least(lhs, size)

    def group(index: jax.Array, out: jax.Array) -> jax.Array:
        weights = jax.lax.dynamic_index_in_dim(rhs, index, keepdims=False).astype(jnp.float32)
        weights = weights.T if transpose_rhs else weights

        def tile(at: jax.Array, own: jax.Array, out: jax.Array) -> jax.Array:
            product = jnp.matmul(
                _rows(padded, at, size).astype(jnp.float32),
                weights,
                precision=jax.lax.Precision.HIGHEST,
            )
            product = jnp.where(own, product.astype(out.dtype), _rows(out, at, size))
            return jax.lax.dynamic_update_slice_in_dim(out, product, at, 0)

        return _over_tiles(tile, starts[index], ends[index], len(padded), size, out)

    out = jnp.zeros((len(padded), rhs.shape[1 if transpose_rhs else 2]), lhs.dtype)
    return _over_groups(group, starts, ends, vary(out, varying(lhs)))[:rows]


def outer(
    lhs: jax.Array, grad: jax.Array, starts: jax.Array, ends: jax.Array, *, interpret: bool
) -> jax.Array:
    """Multiplies each group's rows of lhs, transposed, by its rows of grad.

    Args:
      lhs: bfloat16 or float32 [m, k], no size 0.
      grad: [m, n] in lhs' dtype.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.
      interpret: Unused; it is an argument of all implementations.

    Returns:
      [e, k, n] in lhs' dtype, zero for groups without rows.
    """
    del interpret
    # The product transposes its left operand, so the narrower operand is on the left.
    turned = lhs.shape[1] > grad.shape[1]
    left, right = (_at_least(x, _OUTER_TILE) for x in ((grad, lhs) if turned else (lhs, grad)))
    nothing = vary(jnp.zeros((left.shape[1], right.shape[1])), varying(lhs))

    def tile(at: jax.Array, own: jax.Array, sum_: jax.Array) -> jax.Array:
        # Both operands are masked: 0 * NaN would be NaN.
        mine = (
            jnp.where(own, _rows(x, at, _OUTER_TILE), 0).astype(jnp.float32) for x in (left, right)
        )
        one, other = mine
        return sum_ + jnp.matmul(one.T, other, precision=jax.lax.Precision.HIGHEST)

    def group(index: jax.Array, out: jax.Array) -> jax.Array:
        sum_ = _over_tiles(tile, starts[index], ends[index], len(left), _OUTER_TILE, nothing)
        sum_ = (sum_.T if turned else sum_).astype(out.dtype)
        return jax.lax.dynamic_update_index_in_dim(out, sum_, index, 0)

    out = jnp.zeros((len(starts), lhs.shape[1], grad.shape[1]), lhs.dtype)
    return _over_groups(group, starts, ends, vary(out, varying(lhs)))


def _over_groups(
    group: Callable[[jax.Array, jax.Array], jax.Array],
    starts: jax.Array,
    ends: jax.Array,
    carry: jax.Array,
) -> jax.Array:
    """Calls `group(index, carry)` for each group with rows; in a stack of layers few have rows."""
    some = jnp.nonzero(ends > starts, size=len(starts), fill_value=0)[0]
    count = jnp.sum(ends > starts)
    return jax.lax.fori_loop(0, count, lambda i, carry: group(some[i], carry), carry)


def _over_tiles(
    tile: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    start: jax.Array,
    end: jax.Array,
    rows: int,
    size: int,
    carry: jax.Array,
) -> jax.Array:
    """Calls `tile(first row, bool[size, 1] mask of its rows, carry)` over a group's row tiles."""

    def visit(i: jax.Array, carry: jax.Array) -> jax.Array:
        first = start + i * size
        at = jnp.minimum(first, rows - size)
        row = at + jnp.arange(size)[:, None]
        return tile(at, (row >= first) & (row < end), carry)

    return jax.lax.fori_loop(0, -(-(end - start) // size), visit, carry)


def _rows(x: jax.Array, at: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size)


def _at_least(x: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x, ((0, max(rows - len(x), 0)), (0, 0)))
