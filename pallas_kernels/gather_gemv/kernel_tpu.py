"""`gather_gemv` for TPUs: one launch that streams the chosen experts' weights through VMEM.

The grid runs over the list of chosen experts and over blocks of their hidden width. The list is
prefetched into scalar memory, so that the next block of weights is fetched while the current one is
multiplied. Every chosen expert is applied to all tokens: for up to about 128 rows the matrix unit
needs no more time than the transfer of the weights from HBM. The result is batch-invariant: block
sizes depend on the shape of the weights only, and experts are summed in ascending order.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gather_gemv.active import active_experts
from pallas_kernels.gather_gemv.reference import Scales, precision
from pallas_kernels.tpu import TpuTarget, tpu_target
from pallas_kernels.varying import result

MAX_TOKENS = 128  # of one launch; more tokens need several, which read the weights again
_ROWS = 16  # sublanes of a bfloat16 tile
_SUBLANES = 8  # sublanes of a float32 tile
_LANES = 128
# Values of a block of weights. Larger blocks take minutes to compile, this size takes seconds.
_MAX_BLOCK = 4096 * 512
_VMEM_SHARE = 0.95  # the compiler needs the rest


def refusal(x: jax.Array, gate: jax.Array) -> str | None:
    """The reason why the kernel cannot run on the TPU that is traced for, or None if it can.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      gate: [e, d, f] in x's dtype, int8 or float8_e4m3fn.
    """
    target = tpu_target()
    if gate.dtype == jnp.float8_e4m3fn and target.generation < 5:
        return f"{target.name} has no float8"
    if ffn_block(x.dtype, gate, target) is None:
        _, d, f = gate.shape
        return (
            f"an expert of d={d}, f={f} in {gate.dtype.name} has no block that fits the "
            f"{target.vmem_bytes >> 20} MiB of VMEM of {target.name}; wanted an f that is a "
            f"multiple of {_LANES * target.cores}, or a smaller d"
        )
    return None


def ffn_block(dtype: jnp.dtype, gate: jax.Array, target: TpuTarget) -> int | None:
    """The largest hidden width of a block of weights that fits VMEM.

    Args:
      dtype: Dtype of the tokens.
      gate: [e, d, f] in dtype, int8 or float8_e4m3fn.
      target: The TPU.

    Returns:
      f, or a multiple of 128 that divides f into equally many blocks per core; None if none fits.
    """
    _, d, f = gate.shape
    itemsize = gate.dtype.itemsize
    blocks = [b for b in range(_LANES, f + 1, _LANES) if f % (b * target.cores) == 0] or [f]
    blocks = [b for b in blocks if d * b <= _MAX_BLOCK] or blocks[:1]
    # The tokens, two buffers of the output and one product, for MAX_TOKENS tokens.
    tokens = MAX_TOKENS * d * (dtype.itemsize + 2 * 4 + 4)
    for block in reversed(blocks):
        # Two buffers of three matrices; 8-bit weights also have a copy in the tokens' dtype.
        copies = 2 * itemsize + (dtype.itemsize if itemsize == 1 else 0)
        weights, hidden = 3 * d * block * copies, 3 * MAX_TOKENS * block * 4
        if tokens + weights + hidden <= _VMEM_SHARE * target.vmem_bytes:
            return block
    return None


def _kernel(
    active: jax.Ref,
    x: jax.Ref,
    experts: jax.Ref,
    weights: jax.Ref,
    *refs: jax.Ref,
    scaled: bool,
) -> None:
    """Adds one expert's output for all tokens that chose it, from a block of hidden columns."""
    gate, up, down = refs[:3]
    gate_scale, up_scale, down_scale = refs[3:6] if scaled else (None, None, None)
    total = refs[-1]
    place, block = pl.program_id(1), pl.program_id(2)

    @pl.when((place == 0) & (block == 0))
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    def product(lhs: jax.Array, rhs: jax.Ref, scale: jax.Ref | None) -> jax.Array:
        out = jnp.dot(
            lhs,
            rhs[0].astype(lhs.dtype),
            precision=precision(lhs.dtype),
            preferred_element_type=jnp.float32,
        )
        return out if scale is None else out * scale[pl.ds(active[place] % scale.shape[0], 1), :]

    mine = experts[...] == active[place]
    share = jnp.sum(jnp.where(mine, weights[...], 0.0), axis=1, keepdims=True)
    hidden = jax.nn.silu(product(x[...], gate, gate_scale)) * product(x[...], up, up_scale)
    part = product((hidden * share).astype(x.dtype), down, down_scale)
    chosen = jnp.max(jnp.where(mine, 1.0, 0.0), axis=1, keepdims=True) > 0.0
    total[0] = jnp.where(chosen, total[0] + part, total[0])


def gather_gemv_tpu(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
    interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
    """Computes `gather_gemv` on a TPU.

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
    if len(x) <= MAX_TOKENS:
        return _launch(x, experts, weights, gate, up, down, scales, interpret)
    starts = range(0, len(x), MAX_TOKENS)
    chunks = [[a[i : i + MAX_TOKENS] for a in (x, experts, weights)] for i in starts]
    parts = [
        _launch(one, ids, shares, gate, up, down, scales, interpret) for one, ids, shares in chunks
    ]
    return jnp.concatenate(parts)


def _launch(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
    interpret: bool | pltpu.InterpretParams,
) -> jax.Array:
    """One launch of the kernel, for at most MAX_TOKENS tokens."""
    t, d = x.shape
    f = gate.shape[2]
    target = tpu_target()
    block = ffn_block(x.dtype, gate, target) or f  # callers have checked `refusal`
    # If two cores share the device, each computes half of the hidden width.
    cores = target.cores if (f // block) % target.cores == 0 else 1
    steps = f // block // cores
    active, count = active_experts(experts, len(gate))
    pad = ((0, -t % _ROWS), (0, 0))
    x = jnp.pad(x, pad)
    experts = jnp.pad(experts, pad, constant_values=-1)
    weights = jnp.pad(weights, pad)

    def whole(core: jax.Array, place: jax.Array, step: jax.Array, active: jax.Ref) -> tuple:
        return 0, 0

    def columns(core: jax.Array, place: jax.Array, step: jax.Array, active: jax.Ref) -> tuple:
        return active[place], 0, core * steps + step

    def rows(core: jax.Array, place: jax.Array, step: jax.Array, active: jax.Ref) -> tuple:
        return active[place], core * steps + step, 0

    into = pl.BlockSpec((1, d, block), columns)
    once = pl.Buffered(1)  # the same block in every step
    in_specs = [pl.BlockSpec(a.shape, whole, pipeline_mode=once) for a in (x, experts, weights)]
    in_specs += [into, into, pl.BlockSpec((1, block, d), rows)]
    operands = [x, experts, weights, gate, up, down]
    if scales is not None:
        # A block has the scales of eight experts: one row is not a tile, and padding rows to tiles
        # would copy the scales.
        group = min(_SUBLANES, len(gate))
        scale = pl.BlockSpec((group, block), lambda c, p, s, a: (a[p] // group, c * steps + s))
        in_specs += [scale, scale]
        in_specs.append(pl.BlockSpec((group, d), lambda c, p, s, a: (a[p] // group, 0)))
        operands += scales
    parts = pl.pallas_call(
        functools.partial(_kernel, scaled=scales is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            # If no expert is chosen, one step remains, which zeroes the output.
            grid=(cores, jnp.maximum(count, 1), steps),
            in_specs=in_specs,
            out_specs=pl.BlockSpec((1, len(x), d), lambda c, p, s, active: (c, 0, 0)),
        ),
        out_shape=result((cores, len(x), d), jnp.float32, x),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=int(target.vmem_bytes * _VMEM_SHARE),
        ),
        interpret=interpret,
        name="gather_gemv",
    )(active, *operands)
    return functools.reduce(jnp.add, parts)[:t].astype(x.dtype)
