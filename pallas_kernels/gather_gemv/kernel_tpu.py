"""`gather_gemv` for TPUs: one launch that streams the chosen experts' weights through VMEM.

The grid runs over the list of chosen experts and over blocks of their hidden width; the list is
prefetched into scalar memory, so that the weights' next block is on its way while this one is
multiplied. All tokens go through every chosen expert: up to about 128 rows a matrix unit takes
no longer than HBM does to deliver the weights. Blocks depend on the weights' shape alone, and
experts add up in ascending order: a token's bits do not depend on its neighbours.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gather_gemv.active import active_experts
from pallas_kernels.gather_gemv.reference import Scales, precision
from pallas_kernels.tpu import Chip, chip
from pallas_kernels.varying import result

MAX_TOKENS = 128  # of one launch; more take several, which read the weights again
_ROWS = 16  # a bfloat16 tile's sublanes
_SUBLANES = 8  # of a float32 tile
_LANES = 128
# Larger blocks of weights take the compiler minutes (4096 x 512 takes seconds).
_MAX_BLOCK = 4096 * 512
_VMEM_SHARE = 0.95  # the compiler keeps some to itself


def refusal(x: jax.Array, gate: jax.Array) -> str | None:
    """Why the kernel cannot run on the chip that is traced for, or None if it can.

    Args:
      x: [t, d].
      gate: [e, d, f].
    """
    target = chip()
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


def ffn_block(dtype: jnp.dtype, gate: jax.Array, target: Chip) -> int | None:
    """The hidden width of a block of weights: the largest that VMEM holds.

    Args:
      dtype: Of the tokens.
      gate: [e, d, f].
      target: The chip.

    Returns:
      f, or a multiple of 128 that divides f and leaves every core a block; None if none fits.
    """
    _, d, f = gate.shape
    itemsize = gate.dtype.itemsize
    blocks = [b for b in range(_LANES, f + 1, _LANES) if f % (b * target.cores) == 0] or [f]
    blocks = [b for b in blocks if d * b <= _MAX_BLOCK] or blocks[:1]
    # Tokens, two buffers of the output, one product; as if there were always MAX_TOKENS.
    tokens = MAX_TOKENS * d * (dtype.itemsize + 2 * 4 + 4)
    for block in reversed(blocks):
        # Two buffers of three matrices, unpacked once more where they are packed.
        copies = 2 * itemsize + (dtype.itemsize if itemsize == 1 else 0)
        weights, hidden = 3 * d * block * copies, 3 * MAX_TOKENS * block * 4
        if tokens + weights + hidden <= _VMEM_SHARE * target.vmem_bytes:
            return block
    return None


def _kernel(active, x, experts, weights, *refs, scaled: bool):  # noqa: ANN001, ANN002, ANN202
    gate, up, down = refs[:3]
    gate_scale, up_scale, down_scale = refs[3:6] if scaled else (None, None, None)
    total = refs[-1]
    place, block = pl.program_id(1), pl.program_id(2)

    @pl.when((place == 0) & (block == 0))
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    def product(lhs, rhs, scale):  # noqa: ANN001, ANN202
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
    """See `gather_gemv`; x has at least one row."""
    t, d = x.shape
    if t > MAX_TOKENS:
        starts = range(0, t, MAX_TOKENS)
        chunks = [[a[i : i + MAX_TOKENS] for a in (x, experts, weights)] for i in starts]
        parts = [
            gather_gemv_tpu(one, ids, shares, gate, up, down, scales, interpret)
            for one, ids, shares in chunks
        ]
        return jnp.concatenate(parts)
    f = gate.shape[2]
    target = chip()
    block = ffn_block(x.dtype, gate, target) or f  # `refusal` was asked before
    # With two cores a device, each takes half of the hidden width.
    cores = target.cores if (f // block) % target.cores == 0 else 1
    steps = f // block // cores
    active, count = active_experts(experts, len(gate))
    pad = ((0, -t % _ROWS), (0, 0))
    x = jnp.pad(x, pad)
    experts = jnp.pad(experts, pad, constant_values=-1)
    weights = jnp.pad(weights, pad)

    def whole(core, place, step, active):  # noqa: ANN001, ANN202
        return 0, 0

    def columns(core, place, step, active):  # noqa: ANN001, ANN202
        return active[place], 0, core * steps + step

    def rows(core, place, step, active):  # noqa: ANN001, ANN202
        return active[place], core * steps + step, 0

    into = pl.BlockSpec((1, d, block), columns)
    once = pl.Buffered(1)  # the same block in every step
    in_specs = [pl.BlockSpec(a.shape, whole, pipeline_mode=once) for a in (x, experts, weights)]
    in_specs += [into, into, pl.BlockSpec((1, block, d), rows)]
    operands = [x, experts, weights, gate, up, down]
    if scales is not None:
        # Eight experts' scales at once: a row alone is no tile, and padded rows would be copies.
        group = min(_SUBLANES, len(gate))
        scale = pl.BlockSpec((group, block), lambda c, p, s, a: (a[p] // group, c * steps + s))
        in_specs += [scale, scale]
        in_specs.append(pl.BlockSpec((group, d), lambda c, p, s, a: (a[p] // group, 0)))
        operands += scales
    parts = pl.pallas_call(
        functools.partial(_kernel, scaled=scales is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            # With nobody chosen one step remains, which zeroes the output.
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
