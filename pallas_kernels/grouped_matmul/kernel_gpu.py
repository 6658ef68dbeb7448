"""Grouped matrix multiplication for GPUs from Hopper on, as Pallas kernels for Triton."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.grouped_matmul import visits
from pallas_kernels.varying import result

_BAND = 8  # consecutive row tiles with the same columns, so that weights stay in the L2 cache
_LEAST_ROWS, _MOST_ROWS = 64, 128  # of a row tile; Hopper's matrix instruction has 64 rows


def refusal(k: int, n: int, itemsize: int, interpret: bool) -> str | None:
    """The reason why the kernels cannot run with weights [e, k, n], or None if they can."""
    del itemsize, interpret
    if k % 16 or n % 16:
        return f"k={k}, n={n}: wanted multiples of 16, as the tensor cores need; pad them"
    return None


def _side(size: int, most: int) -> int:
    """Side of a block: the smallest power of 2 that is at least `size`, but at most `most`."""
    return min(most, pl.next_power_of_2(size))


def _row_tile(rows: int, groups: int) -> int:
    return _MOST_ROWS if rows >= 2 * _MOST_ROWS * groups else _LEAST_ROWS


def _dot(lhs: jax.Array, rhs: jax.Array, lhs_axis: int, rhs_axis: int) -> jax.Array:
    return jax.lax.dot_general(
        lhs,
        rhs,
        (((lhs_axis,), (rhs_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if lhs.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _params(itemsize: int) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=8, num_stages=4 if itemsize == 2 else 2)


def _matmul_kernel(
    group_ref: jax.Ref,
    first_ref: jax.Ref,
    ends_ref: jax.Ref,
    lhs_ref: jax.Ref,
    rhs_ref: jax.Ref,
    out_ref: jax.Ref,
    *,
    tile: tuple[int, int, int],
    transpose_rhs: bool,
) -> None:
    """Multiplies one row tile, which has rows of one group, by a block of the group's columns."""
    tm, tk, tn = tile
    k, n = lhs_ref.shape[1], out_ref.shape[1]
    groups, tiles, columns = rhs_ref.shape[0], group_ref.shape[0], pl.cdiv(n, tn)
    program = pl.program_id(0)
    band = program // (_BAND * columns) * _BAND
    height = jnp.minimum(tiles - band, _BAND)
    visit = band + (program % (_BAND * columns)) % height
    column = (program % (_BAND * columns)) // height * tn
    group, first = group_ref[visit], first_ref[visit]
    own = (first + jnp.arange(tm) < ends_ref[group])[:, None]
    inside = (column + jnp.arange(tn) < n)[None, :]
    weights = jnp.minimum(group, groups - 1)

    def step(part: jax.Array, total: jax.Array) -> jax.Array:
        depth = pl.ds(part * tk, tk)
        lhs = plgpu.load(lhs_ref.at[pl.ds(first, tm), depth], mask=own, other=0)
        if transpose_rhs:
            block = rhs_ref.at[weights, pl.ds(column, tn), depth]
            rhs = plgpu.load(block, mask=inside.T, other=0)
        else:
            block = rhs_ref.at[weights, depth, pl.ds(column, tn)]
            rhs = plgpu.load(block, mask=inside, other=0)
        return total + _dot(lhs, rhs, 1, int(transpose_rhs))

    # The rows that belong to no group are the last group; nothing is read for them.
    live = (group < groups) & (first < ends_ref[group])
    total = jnp.zeros((tm, tn), jnp.float32)
    total = jax.lax.fori_loop(0, live.astype(jnp.int32) * (k // tk), step, total)
    out = out_ref.at[pl.ds(first, tm), pl.ds(column, tn)]
    plgpu.store(out, total.astype(out_ref.dtype), mask=own & inside)


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
      rhs: [e, k, n], or [e, n, k] if transposed, in lhs' dtype; k and n are multiples of 16.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.
      transpose_rhs: Whether to contract the last axis of rhs.
      interpret: Runs the kernel in interpret mode, on any platform.

    Returns:
      [m, n] in lhs' dtype, zero in rows that belong to no group.
    """
    rows, k = lhs.shape
    n = rhs.shape[1] if transpose_rhs else rhs.shape[2]
    # The block of the contraction depends on k and the dtype only, for batch invariance.
    tile = (
        _row_tile(rows, rhs.shape[0]),
        math.gcd(k, 64 if lhs.dtype == jnp.bfloat16 else 32),
        _side(n, 128),
    )
    starts, ends = visits.with_rest(starts, ends, rows)
    group, first, _ = visits.group_tiles(starts, ends, rows, tile[0])
    return pl.pallas_call(
        functools.partial(_matmul_kernel, tile=tile, transpose_rhs=transpose_rhs),
        grid=(group.shape[0] * pl.cdiv(n, tile[2]),),
        out_shape=result((rows, n), lhs.dtype, lhs),
        compiler_params=_params(lhs.dtype.itemsize),
        name="grouped_matmul_transposed" if transpose_rhs else "grouped_matmul",
        interpret=interpret,
    )(group, first, ends, lhs, rhs)


def _outer_kernel(
    starts_ref: jax.Ref,
    ends_ref: jax.Ref,
    lhs_ref: jax.Ref,
    grad_ref: jax.Ref,
    out_ref: jax.Ref,
    *,
    tile: tuple[int, int, int],
) -> None:
    """Computes one block of one group's product, summed over the group's rows."""
    tm, tk, tn = tile
    k, n = lhs_ref.shape[1], grad_ref.shape[1]
    group = pl.program_id(2)
    row, column = pl.program_id(1) * tk, pl.program_id(0) * tn
    above = row + jnp.arange(tk) < k
    inside = (column + jnp.arange(tn) < n)[None, :]
    start, end = starts_ref[group], ends_ref[group]

    def step(part: jax.Array, total: jax.Array) -> jax.Array:
        first = start + part * tm
        own = (first + jnp.arange(tm) < end)[:, None]
        rows = pl.ds(first, tm)
        lhs = plgpu.load(lhs_ref.at[rows, pl.ds(row, tk)], mask=own & above[None, :], other=0)
        grad = plgpu.load(grad_ref.at[rows, pl.ds(column, tn)], mask=own & inside, other=0)
        return total + _dot(lhs, grad, 0, 0)

    total = jnp.zeros((tk, tn), jnp.float32)
    total = jax.lax.fori_loop(0, (end - start + tm - 1) // tm, step, total)
    out = out_ref.at[group, pl.ds(row, tk), pl.ds(column, tn)]
    plgpu.store(out, total.astype(out_ref.dtype), mask=above[:, None] & inside)


def outer(
    lhs: jax.Array, grad: jax.Array, starts: jax.Array, ends: jax.Array, *, interpret: bool
) -> jax.Array:
    """Multiplies each group's rows of lhs, transposed, by its rows of grad.

    Args:
      lhs: bfloat16 or float32 [m, k], no size 0; k is a multiple of 16.
      grad: [m, n] in lhs' dtype; n is a multiple of 16.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.
      interpret: Runs the kernel in interpret mode, on any platform.

    Returns:
      [e, k, n] in lhs' dtype, zero for groups without rows.
    """
    k, n = lhs.shape[1], grad.shape[1]
    groups = starts.shape[0]
    tile = (64 if lhs.dtype == jnp.bfloat16 else 32, _side(k, 128), _side(n, 128))
    return pl.pallas_call(
        functools.partial(_outer_kernel, tile=tile),
        grid=(pl.cdiv(n, tile[2]), pl.cdiv(k, tile[1]), groups),
        out_shape=result((groups, k, n), lhs.dtype, lhs),
        compiler_params=_params(lhs.dtype.itemsize),
        name="grouped_outer",
        interpret=interpret,
    )(starts, ends, lhs, grad)
