"""Grouped matrix multiplication for TPUs, as Pallas kernels.

A row tile is visited once for each group that has rows in it. The list of visits is computed before
the launch and prefetched into scalar memory, as in MegaBlocks (Gale et al. 2022, arXiv:2211.15841)
and its JAX version, jax/experimental/pallas/ops/tpu/megablox. Unlike there, every row of the result
is written, the number of rows is arbitrary, and the split of the contraction depends on the shape
of the weights only.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul import visits
from pallas_kernels.varying import result

_SIDES = (2048, 1024, 512, 256, 128)  # candidate sizes of a block's axes
_LEAST_ROWS = 128  # of a row tile, also if the groups have fewer rows
_STRIP = 64  # rows that a loop without products handles at a time; keeps the program small
_MAX_K = 8192  # longest contraction of one block, if it can be split
_INTERPRETED_VMEM = 16 * 2**20  # bytes, for interpreted kernels


class Block(NamedTuple):
    """Sizes of the blocks that a kernel keeps in VMEM."""

    rows: int  # tm, rows of the row tile
    k: int  # tk, length of the contraction
    n: int  # tn, columns


class BlockLimits(NamedTuple):
    """Limits of a block on one TPU."""

    vmem: int  # bytes that a kernel may use
    volume: int  # bfloat16 multiply-adds of one grid step; larger kernels take minutes to compile


def block_limits(interpret: bool | pltpu.InterpretParams) -> BlockLimits:
    """The limits on the TPU that is traced for, or for interpreted kernels."""
    if interpret:
        return BlockLimits(_INTERPRETED_VMEM * 15 // 16, 2**30)
    info = pltpu.get_tpu_info()
    volume = 2**31 if info.mxu_column_size >= 256 else 2**30
    return BlockLimits(info.vmem_capacity_bytes * 15 // 16, volume)


def matmul_block(k: int, n: int, itemsize: int, limits: BlockLimits) -> Block:
    """Largest block of the product of [rows, k] and [k, n] within the limits.

    The block, and with it the split of the contraction, does not depend on the number of rows.

    Args:
      k: Length of the contraction.
      n: Columns of the result.
      itemsize: Bytes of a value.
      limits: The limits.

    Returns:
      The block; its k divides `k`.

    Raises:
      ValueError: The smallest block does not fit.
    """
    found = None
    volume = _volume(itemsize, limits)
    parts = [k] + [p for p in range(_MAX_K, 0, -128) if k % p == 0 and p < k]
    for tk in parts:
        fits = [
            Block(tm, tk, tn)
            for tm in _SIDES[1:]
            for tn in {min(n, side) for side in _SIDES[1:]}
            if _matmul_bytes(tm, tk, tn, itemsize, tk < k) <= limits.vmem
            and (tm * tk * tn <= volume or tm == _LEAST_ROWS)
        ]
        if fits:
            best = max(fits, key=lambda b: (b.rows * b.n, min(b.rows, b.n), b.n))
            found = found or best
            if tk <= _MAX_K and best.rows >= 256 and best.n >= min(n, 256):
                return best
    if found is None:
        least = _matmul_bytes(_LEAST_ROWS, parts[-1], min(n, 128), itemsize, len(parts) > 1)
        raise ValueError(
            f"k={k}, n={n}: the smallest block takes {least} bytes of VMEM, wanted at most "
            f"{limits.vmem}; make k and n multiples of 128 that can be split"
        )
    return found


def outer_block(k: int, n: int, itemsize: int, limits: BlockLimits) -> Block:
    """Largest block of the product of [k, rows] and [rows, n] within the limits.

    Args:
      k: Rows of the result.
      n: Columns of the result.
      itemsize: Bytes of a value.
      limits: The limits.

    Returns:
      The block.

    Raises:
      ValueError: The smallest block does not fit.
    """
    fits = [
        Block(tm, tk, tn)
        for tm in _SIDES[1:]
        for tk in {min(k, side) for side in _SIDES}
        for tn in {min(n, side) for side in _SIDES[1:]}
        if _outer_bytes(tm, tk, tn, itemsize) <= limits.vmem
        and tm * tk * tn <= _volume(itemsize, limits)
    ]
    if not fits:
        least = _outer_bytes(_LEAST_ROWS, min(k, 128), min(n, 128), itemsize)
        raise ValueError(
            f"k={k}, n={n}: the smallest block of the weights' gradient takes {least} bytes of "
            f"VMEM, wanted at most {limits.vmem}; choose another implementation"
        )
    return max(fits, key=lambda b: (b.rows * b.k * b.n, b.k * b.n, b.n))


def _matmul_bytes(tm: int, tk: int, tn: int, itemsize: int, split: bool) -> int:
    """Bytes of VMEM of the forward kernel: double-buffered blocks, copies, a float32 result.

    The compiler copies lhs in bfloat16. It copies both float32 operands twice, to split them into
    bfloat16 parts.
    """
    lhs, rhs = (3, 2) if itemsize == 2 else (4, 4)
    operands = lhs * tm * _lanes(tk) + rhs * tk * _lanes(tn)
    return operands * itemsize + tm * _lanes(tn) * (2 * itemsize + 4 + 4 * split)


def _outer_bytes(tm: int, tk: int, tn: int, itemsize: int) -> int:
    """Bytes of VMEM of the weights' gradient: double-buffered blocks, copies, a float32 sum."""
    operands = (3 if itemsize == 2 else 4) * tm * (_lanes(tk) + _lanes(tn))
    return operands * itemsize + tk * _lanes(tn) * (2 * itemsize + 4)


def _volume(itemsize: int, limits: BlockLimits) -> int:
    """Most multiply-adds of one grid step; a float32 product is six bfloat16 products."""
    return limits.volume if itemsize == 2 else limits.volume // 8


def _lanes(size: int) -> int:
    return -(-size // 128) * 128


def refusal(k: int, n: int, itemsize: int, interpret: bool) -> str | None:
    """The reason why the kernels cannot run with weights [e, k, n], or None if they can."""
    try:
        limits = block_limits(interpret)
        matmul_block(k, n, itemsize, limits)
        matmul_block(n, k, itemsize, limits)
        outer_block(k, n, itemsize, limits)
    except ValueError as error:
        return str(error)
    return None


def _fewer_rows(block: Block, rows: int, groups: int) -> Block:
    """Halves the row tile while groups are small, so that tiles have fewer rows of other groups."""
    tm = block.rows
    while tm > _LEAST_ROWS and 2 * tm * groups > rows:
        tm //= 2
    return block._replace(rows=tm)


def _dot(lhs: jax.Array, rhs: jax.Array, lhs_axis: int, rhs_axis: int) -> jax.Array:
    return jax.lax.dot_general(
        lhs,
        rhs,
        (((lhs_axis,), (rhs_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if lhs.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _rows_between(first: jax.Array, start: jax.Array, end: jax.Array, shape: tuple) -> jax.Array:
    """Mask of the rows in [start, end), for a block that begins at row `first`."""
    row = first + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return (row >= start) & (row < end)


def _matmul_kernel(
    group_ref: jax.Ref,
    tile_ref: jax.Ref,
    lhs_tile_ref: jax.Ref,
    starts_ref: jax.Ref,
    ends_ref: jax.Ref,
    lhs_ref: jax.Ref,
    rhs_ref: jax.Ref,
    out_ref: jax.Ref,
    *scratch: jax.Ref,
    groups: int,
    transpose_rhs: bool,
) -> None:
    """Multiplies one row tile by one group's weights and writes the tile's rows of that group."""
    del lhs_tile_ref
    visit, part = pl.program_id(1), pl.program_id(2)
    final = pl.num_programs(2) - 1
    group = group_ref[visit]
    first = tile_ref[visit] * out_ref.shape[0]
    start, end = starts_ref[group], ends_ref[group]

    def store(value: jax.Array) -> None:
        mine = _rows_between(first, start, end, out_ref.shape)
        kept = out_ref[...].astype(jnp.float32)
        out_ref[...] = jnp.where(mine, value, kept).astype(out_ref.dtype)

    @pl.when(group == groups)
    def _no_group() -> None:
        @pl.loop(0, out_ref.shape[0], step=_STRIP)
        def _strip(row: jax.Array) -> None:
            kept = out_ref[pl.ds(row, _STRIP), :].astype(jnp.float32)
            mine = _rows_between(first + row, start, end, kept.shape)
            out_ref[pl.ds(row, _STRIP), :] = jnp.where(mine, 0, kept).astype(out_ref.dtype)

    @pl.when(group < groups)
    def _group() -> None:
        product = _dot(lhs_ref[...], rhs_ref[...], 1, int(transpose_rhs))
        if not scratch:
            store(product)
            return
        (sum_ref,) = scratch

        @pl.when(part == 0)
        def _first() -> None:
            sum_ref[...] = product

        @pl.when(part > 0)
        def _next() -> None:
            sum_ref[...] += product

        @pl.when(part == final)
        def _last() -> None:
            store(sum_ref[...])


def matmul(
    lhs: jax.Array,
    rhs: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
    *,
    transpose_rhs: bool,
    interpret: bool | pltpu.InterpretParams,
) -> jax.Array:
    """Multiplies rows by the weights of their groups.

    Args:
      lhs: bfloat16 or float32 [m, k], no size 0.
      rhs: [e, k, n], or [e, n, k] if transposed, in lhs' dtype.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.
      transpose_rhs: Whether to contract the last axis of rhs.
      interpret: Runs the kernel in interpret mode, on any platform.

    Returns:
      [m, n] in lhs' dtype, zero in rows that belong to no group.
    """
    rows, k = lhs.shape
    groups = rhs.shape[0]
    n = rhs.shape[1] if transpose_rhs else rhs.shape[2]
    limits = block_limits(interpret)
    tm, tk, tn = _fewer_rows(matmul_block(k, n, lhs.dtype.itemsize, limits), rows, groups)
    group_starts, group_ends = visits.with_rest(starts, ends, rows)
    group, tile, count = visits.tile_visits(group_starts, group_ends, rows, tm, visit_empty=False)
    # Tiles past the last group repeat the previous block, which is not fetched again.
    lhs_tile = jnp.minimum(tile, jnp.maximum(ends[-1] - 1, 0) // tm)

    def rhs_index(j: jax.Array, v: jax.Array, p: jax.Array, group: jax.Ref, *_: jax.Ref) -> tuple:
        g = jnp.minimum(group[v], groups - 1)
        return (g, j, p) if transpose_rhs else (g, p, j)

    return pl.pallas_call(
        functools.partial(_matmul_kernel, groups=groups, transpose_rhs=transpose_rhs),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(pl.cdiv(n, tn), count, k // tk),
            in_specs=[
                pl.BlockSpec((tm, tk), lambda j, v, p, group, tile, lhs_tile, *_: (lhs_tile[v], p)),
                pl.BlockSpec((None, tn, tk) if transpose_rhs else (None, tk, tn), rhs_index),
            ],
            out_specs=pl.BlockSpec((tm, tn), lambda j, v, p, group, tile, *_: (tile[v], j)),
            scratch_shapes=[pltpu.VMEM((tm, tn), jnp.float32)] if tk < k else [],
        ),
        out_shape=result((rows, n), lhs.dtype, lhs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=limits.vmem
        ),
        name="grouped_matmul_transposed" if transpose_rhs else "grouped_matmul",
        interpret=interpret,
    )(group, tile, lhs_tile, group_starts, group_ends, lhs, rhs)


def _keep_rows(x: jax.Array, first: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Zeroes the rows of a block outside [start, end), including NaN."""
    if x.dtype == jnp.float32:
        return jnp.where(_rows_between(first, start, end, x.shape), x, 0)
    # Two bfloat16 rows share a 32-bit word. Masking words needs no conversion to float32.
    words = pltpu.bitcast(x, jnp.uint32)
    row = first + 2 * jax.lax.broadcasted_iota(jnp.int32, words.shape, 0)
    even = jnp.where((row >= start) & (row < end), jnp.uint32(0xFFFF), jnp.uint32(0))
    odd = jnp.where((row + 1 >= start) & (row + 1 < end), jnp.uint32(0xFFFF0000), jnp.uint32(0))
    return pltpu.bitcast(words & (even | odd), x.dtype)


def _outer_kernel(
    group_ref: jax.Ref,
    tile_ref: jax.Ref,
    starts_ref: jax.Ref,
    ends_ref: jax.Ref,
    lhs_ref: jax.Ref,
    grad_ref: jax.Ref,
    out_ref: jax.Ref,
    sum_ref: jax.Ref,
) -> None:
    """Adds the product of one row tile's rows to one group's result."""
    visit, final = pl.program_id(2), pl.num_programs(2) - 1
    group = group_ref[visit]
    first = tile_ref[visit] * lhs_ref.shape[0]
    start, end = starts_ref[group], ends_ref[group]

    def each_strip(do: Callable[[jax.Array | int, int], None]) -> None:
        whole = sum_ref.shape[0] // _STRIP * _STRIP
        if whole:
            pl.loop(0, whole, step=_STRIP)(lambda row: do(row, _STRIP))
        if whole < sum_ref.shape[0]:
            do(whole, sum_ref.shape[0] - whole)

    @pl.when((visit == 0) | (group_ref[jnp.maximum(visit - 1, 0)] != group))
    def _first() -> None:
        def zero(row: jax.Array | int, size: int) -> None:
            sum_ref[pl.ds(row, size), :] = jnp.zeros((size, sum_ref.shape[1]), jnp.float32)

        each_strip(zero)

    lhs = _keep_rows(lhs_ref[...], first, start, end)
    grad = _keep_rows(grad_ref[...], first, start, end)
    sum_ref[...] += _dot(lhs, grad, 0, 0)

    @pl.when((visit == final) | (group_ref[jnp.minimum(visit + 1, final)] != group))
    def _last() -> None:
        def store(row: jax.Array | int, size: int) -> None:
            out_ref[pl.ds(row, size), :] = sum_ref[pl.ds(row, size), :].astype(out_ref.dtype)

        each_strip(store)


def outer(
    lhs: jax.Array,
    grad: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
    *,
    interpret: bool | pltpu.InterpretParams,
) -> jax.Array:
    """Multiplies each group's rows of lhs, transposed, by its rows of grad.

    Args:
      lhs: bfloat16 or float32 [m, k], no size 0.
      grad: [m, n] in lhs' dtype.
      starts: int32[e], first row of each group, from `visits.group_bounds`.
      ends: int32[e], end of each group, from `visits.group_bounds`.
      interpret: Runs the kernel in interpret mode, on any platform.

    Returns:
      [e, k, n] in lhs' dtype, zero for groups without rows.
    """
    rows, k = lhs.shape
    n = grad.shape[1]
    groups = starts.shape[0]
    limits = block_limits(interpret)
    tm, tk, tn = _fewer_rows(outer_block(k, n, lhs.dtype.itemsize, limits), rows, groups)
    group, tile, count = visits.tile_visits(starts, ends, rows, tm, visit_empty=True)
    return pl.pallas_call(
        _outer_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(k, tk), pl.cdiv(n, tn), count),
            in_specs=[
                pl.BlockSpec((tm, tk), lambda i, j, v, group, tile, *_: (tile[v], i)),
                pl.BlockSpec((tm, tn), lambda i, j, v, group, tile, *_: (tile[v], j)),
            ],
            out_specs=pl.BlockSpec((None, tk, tn), lambda i, j, v, group, *_: (group[v], i, j)),
            scratch_shapes=[pltpu.VMEM((tk, tn), jnp.float32)],
        ),
        out_shape=result((groups, k, n), lhs.dtype, lhs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=limits.vmem
        ),
        name="grouped_outer",
        interpret=interpret,
    )(group, tile, starts, ends, lhs, grad)
