"""`gather_gemv` for GPUs (Hopper): two launches that stream the chosen experts' weights, and a sum.

The first launch has a program for each expert and block of hidden columns, the second for each
expert and block of output columns. A program whose expert no token chose ends at once. A program
searches the tokens that chose its expert itself, which saves a launch, and computes only these
tokens. Products are transposed, with the weights as the left operand: the weights then fill the
side of fixed size of the tensor cores' tiles, and the order of summation does not depend on the
number of tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.typing import DTypeLike

from pallas_kernels.gather_gemv.reference import Scales, precision
from pallas_kernels.varying import result

MAX_TOKENS = 128  # of one launch; more tokens need several, which read the weights again
_ALIGN = 16  # smallest side of a tensor core's tile
_BLOCK = 64  # width and depth of a block of weights: 128-byte lines of bfloat16
_EXACT_DEPTH = 16  # depth of a block in float32, whose products are unrolled
_FEW_ROWS = 32  # a smaller tile, for experts with few tokens


def refusal(x: jax.Array, gate: jax.Array) -> str | None:
    """The reason why the kernel cannot run, or None if it can.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      gate: [e, d, f] in x's dtype, int8 or float8_e4m3fn.
    """
    del x
    experts, d, f = gate.shape
    if d % _ALIGN or f % _ALIGN:
        return f"d={d} and f={f} must be multiples of {_ALIGN}; pad the weights with zeros"
    if experts >= 2**16:
        return f"{experts} experts, a launch holds at most {2**16 - 1}; shard them"
    # Triton's lowering addresses arrays of up to 4 GiB with signed 32-bit element offsets.
    if gate.dtype.itemsize == 1 and gate.size > 2**31:
        return f"gate has {gate.size} 8-bit values, at most {2**31} can be addressed; shard them"
    return None


def _block(size: int, limit: int = _BLOCK) -> int:
    """The largest power of two up to `limit` that divides `size`."""
    return min(size & -size, limit)


class _Rows(NamedTuple):
    """The tokens that chose an expert, in ascending order, in a tile of rows."""

    filled: jax.Array  # bool[tile]
    token: jax.Array  # int32[tile]
    slot: jax.Array  # int32[tile], row of the result: k per token, in order of its experts
    share: jax.Array  # float32[tile], the router's weight


def _for_chosen(
    ids_ref: jax.Ref, weights_ref: jax.Ref, expert: jax.Array, body: Callable[[_Rows], None]
) -> None:
    """Runs `body` on the smallest tile that holds the expert's tokens, if there are any."""
    t, k = ids_ref.shape
    tokens = max(_ALIGN, pl.next_power_of_2(t))
    token = jax.lax.broadcasted_iota(jnp.int32, (tokens,), 0)
    chosen, before = jnp.zeros_like(token), jnp.zeros_like(token)
    share = jnp.zeros((tokens,), jnp.float32)
    for choice in range(k):
        cells = (token, jnp.full_like(token, choice))
        ids = plt.load(ids_ref.at[cells], mask=token < t, other=-1)
        weights = plt.load(weights_ref.at[cells], mask=token < t, other=0.0)
        share = jnp.where(ids == expert, share + weights, share)
        chosen = jnp.where(ids == expert, 1, chosen)
        before = jnp.where((ids >= 0) & (ids < expert), before + 1, before)
    count = jnp.sum(chosen)

    def in_tile(tile: int) -> None:
        place = jnp.where(chosen > 0, jnp.cumsum(chosen) - 1, -1)
        pick = jax.lax.broadcasted_iota(jnp.int32, (tile, tokens), 0) == place[None, :]
        picked = [
            jnp.sum(jnp.where(pick, v[None, :], jnp.zeros_like(v)[None, :]), axis=1)
            for v in (token, token * k + before, share)
        ]
        body(_Rows(jax.lax.broadcasted_iota(jnp.int32, (tile,), 0) < count, *picked))

    tiles = sorted({min(tokens, _FEW_ROWS), tokens})
    for fewer, tile in zip((0, *tiles), tiles, strict=False):
        pl.when((count > fewer) & (count <= tile))(functools.partial(in_tile, tile))


def _cells(
    row: jax.Array, filled: jax.Array, start: jax.Array, width: int, beyond: int
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Indices of `width` columns of rows, and the mask of filled rows; others get row `beyond`."""
    shape = (row.shape[0], width)
    rows = jnp.broadcast_to(jnp.where(filled, row, beyond)[:, None], shape)
    columns = start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (rows, columns), jnp.broadcast_to(filled[:, None], shape)


def _products(
    rows_ref: jax.Ref,
    row: jax.Array,
    filled: jax.Array,
    matrices: Sequence[jax.Ref],
    scales: Sequence[jax.Ref],
) -> Sequence[jax.Array]:
    """Products of a tile of rows [t, depth] with matrices [depth, width], as [width, tile] each."""
    depth = _block(rows_ref.shape[1], _EXACT_DEPTH if rows_ref.dtype == jnp.float32 else _BLOCK)

    def step(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        cells, mask = _cells(row, filled, i * depth, depth, rows_ref.shape[0])
        rows = plt.load(rows_ref.at[cells], mask=mask, other=0.0)

        def add(total: jax.Array, matrix: jax.Ref) -> jax.Array:
            return total + jax.lax.dot_general(
                matrix[pl.ds(i * depth, depth), :].astype(rows.dtype),
                rows,
                (((0,), (1,)), ((), ())),
                precision=precision(rows.dtype),
                preferred_element_type=jnp.float32,
            )

        return tuple(add(*pair) for pair in zip(sums, matrices, strict=True))

    zeros = tuple(jnp.zeros((m.shape[1], row.shape[0]), jnp.float32) for m in matrices)
    sums = jax.lax.fori_loop(0, rows_ref.shape[1] // depth, step, zeros)
    if not scales:
        return sums
    return [total * s[...][:, None] for total, s in zip(sums, scales, strict=True)]


def _hidden_kernel(
    ids: jax.Ref, weights: jax.Ref, x: jax.Ref, gate: jax.Ref, up: jax.Ref, *refs: jax.Ref
) -> None:
    """Hidden values of one expert's tokens, for a block of hidden columns."""
    *scales, out = refs
    start = pl.program_id(0) * gate.shape[1]

    def body(rows: _Rows) -> None:
        gates, ups = _products(x, rows.token, rows.filled, (gate, up), scales)
        hidden = jax.nn.silu(gates) * ups * rows.share[None, :]
        cells, mask = _cells(rows.slot, rows.filled, start, gate.shape[1], out.shape[0])
        plt.store(out.at[cells], hidden.T.astype(out.dtype), mask=mask)

    _for_chosen(ids, weights, pl.program_id(1), body)


def _part_kernel(
    ids: jax.Ref, weights: jax.Ref, hidden: jax.Ref, down: jax.Ref, *refs: jax.Ref
) -> None:
    """Output of one expert for its tokens, for a block of output columns."""
    *scales, out = refs
    start = pl.program_id(0) * down.shape[1]

    def body(rows: _Rows) -> None:
        (part,) = _products(hidden, rows.slot, rows.filled, (down,), scales)
        cells, mask = _cells(rows.slot, rows.filled, start, down.shape[1], out.shape[0])
        plt.store(out.at[cells], part.T, mask=mask)

    _for_chosen(ids, weights, pl.program_id(1), body)


def _launch(
    kernel: Callable[..., None],
    name: str,
    ids: jax.Array,
    weights: jax.Array,
    rows: jax.Array,
    matrices: tuple[jax.Array, ...],
    scales: tuple[jax.Array, ...],
    dtype: DTypeLike,
    interpret: bool,
) -> jax.Array:
    """Multiplies rows [r, depth] by the experts' matrices [e, depth, width]: [t * k, width]."""
    experts, depth, width = matrices[0].shape
    block = _block(width)
    whole = [pl.BlockSpec(a.shape, lambda j, e: (0, 0)) for a in (ids, weights, rows)]
    matrix = pl.BlockSpec((None, depth, block), lambda j, e: (e, 0, j))
    scale = pl.BlockSpec((None, block), lambda j, e: (e, j))
    # Inside `shard_map`, the result varies over the same mesh axes as the tokens.
    out_shape = result((ids.size, width), dtype, rows)
    return pl.pallas_call(
        kernel,
        # Consecutive programs read adjacent columns of the same rows.
        grid=(width // block, experts),
        in_specs=[*whole, *(matrix for _ in matrices), *(scale for _ in scales)],
        out_specs=pl.BlockSpec(out_shape.shape, lambda j, e: (0, 0)),
        out_shape=out_shape,
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=4 if len(ids) <= 64 else 3),
        interpret=interpret,
        name=name,
    )(ids, weights, rows, *matrices, *scales)


def gather_gemv_gpu(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `gather_gemv` on a GPU.

    Args:
      x: bfloat16 or float32 [t, d], the tokens; t is at least 1.
      experts: int32[t, k], the experts that each token chose.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype, int8 or float8_e4m3fn.
      up: [e, d, f] in gate's dtype.
      down: [e, f, d] in gate's dtype.
      scales: Scales of 8-bit weights, None for others.
      interpret: Runs the kernel in interpret mode, on any platform.

    Returns:
      [t, d] in x's dtype.
    """
    t, d = x.shape
    if t > MAX_TOKENS:
        chunks = [slice(start, start + MAX_TOKENS) for start in range(0, t, MAX_TOKENS)]
        matrices = gate, up, down, scales, interpret
        parts = [gather_gemv_gpu(x[c], experts[c], weights[c], *matrices) for c in chunks]
        return jnp.concatenate(parts)
    ids = jnp.where(experts < len(gate), experts, -1)
    into, out_of = ((), ()) if scales is None else (scales[:2], scales[2:])
    launch = functools.partial(_launch, ids=ids, weights=weights, interpret=interpret)
    hidden = launch(
        _hidden_kernel,
        "gather_gemv_hidden",
        rows=x,
        matrices=(gate, up),
        scales=into,
        dtype=x.dtype,
    )
    parts = launch(
        _part_kernel,
        "gather_gemv_parts",
        rows=hidden,
        matrices=(down,),
        scales=out_of,
        dtype=jnp.float32,
    ).reshape(t, -1, d)
    # The slots of each token that an expert has written. Slots of repeated ids and of ids that
    # choose no expert are uninitialised memory.
    before = jnp.sum((ids[:, None, :] >= 0) & (ids[:, None, :] < ids[:, :, None]), axis=2)
    slots = jnp.arange(ids.shape[1])
    written = jnp.any((ids >= 0)[:, :, None] & (before[:, :, None] == slots), axis=1)
    total = jnp.zeros((t, d), jnp.float32)
    for slot in range(ids.shape[1]):
        total = jnp.where(written[:, slot, None], total + parts[:, slot], total)
    return total.astype(x.dtype)
