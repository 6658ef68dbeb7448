"""`gather_gemv` for CPUs: each choice of each token is multiplied by its expert's weights.

A product is a sum over blocks of a few rows of the weights. XLA fuses such a sum with the gather of
the rows and vectorizes it along the rows. Only chosen experts are computed. Each product has one
token, and the code fixes the order of summation, so the result is batch-invariant.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.gather_gemv.reference import Scales
from pallas_kernels.varying import vary, varying

# Choices that one iteration computes. The number is constant, so that XLA compiles the same
# arithmetic for any number of tokens.
_CHOICES = 8
_FIRST_RUN = 8  # rows of the weights in one sum; longer sums read memory less evenly
_RUN = 8  # partial sums in one sum of the next level; longer sums have larger rounding errors


def gather_gemv_xla(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
) -> jax.Array:
    """Computes `gather_gemv` on a CPU.

    Args:
      x: bfloat16 or float32 [t, d], the tokens; t is at least 1.
      experts: int32[t, k], the experts that each token chose.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype, int8 or float8_e4m3fn.
      up: [e, d, f] in gate's dtype.
      down: [e, f, d] in gate's dtype.
      scales: Scales of 8-bit weights, None for others.

    Returns:
      [t, d] in x's dtype.
    """
    (t, d), k = x.shape, experts.shape[1]
    gate_scale, up_scale, down_scale = scales or (None, None, None)
    experts, weights = _ascending(experts, weights)
    pad = -t * k % _CHOICES
    ids = jnp.pad(experts.reshape(-1), (0, pad), constant_values=-1)
    shares = jnp.pad(weights.reshape(-1, 1), ((0, pad), (0, 0)))
    rows = jnp.pad(jnp.repeat(x, k, axis=0), ((0, pad), (0, 0)))
    exists = (ids >= 0) & (ids < len(gate))
    ids = jnp.clip(ids, 0, len(gate) - 1)
    # The trip count is a run-time value. XLA would inline a loop with one known iteration and fuse
    # its body with other operations, which could change the result.
    count = jnp.max(jnp.where(exists, jnp.arange(t * k + pad) // _CHOICES + 1, 0))

    def passes(f: int, dtype: jax.typing.DTypeLike, one: Callable[..., jax.Array]) -> jax.Array:
        def body(i: jax.Array, out: jax.Array) -> jax.Array:
            def mine(array: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(array, i * _CHOICES, _CHOICES)

            return jax.lax.dynamic_update_slice_in_dim(out, one(mine), i * _CHOICES, 0)

        out = vary(jnp.zeros((t * k + pad, f), dtype), varying(x))
        return jax.lax.fori_loop(0, count, body, out)

    def into(mine: Callable[[jax.Array], jax.Array]) -> jax.Array:
        own, chosen = mine(rows), mine(ids)
        opened = jax.nn.silu(_product(own, chosen, gate, gate_scale))
        hidden = opened * _product(own, chosen, up, up_scale)
        return (hidden * mine(shares)).astype(x.dtype)

    # A separate loop, so that XLA does not compute the hidden values again for each output value.
    hidden = passes(gate.shape[2], x.dtype, into)

    def out_of(mine: Callable[[jax.Array], jax.Array]) -> jax.Array:
        part = _product(mine(hidden), mine(ids), down, down_scale)
        return jnp.where(mine(exists)[:, None], part, 0.0)

    parts = passes(d, jnp.float32, out_of)[: t * k].reshape(t, k, d)
    return _sum([parts[:, choice] for choice in range(k)]).astype(x.dtype)


def _ascending(experts: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each token's choices in ascending order of the experts, by comparisons of all pairs."""
    earlier = jnp.tril(jnp.ones((experts.shape[1],) * 2, bool), -1)
    before = experts[:, None, :] < experts[:, :, None]
    before |= (experts[:, None, :] == experts[:, :, None]) & earlier
    place = jnp.sum(before, axis=-1)
    here = place[:, :, None] == jnp.arange(experts.shape[1])  # [t, from, to]
    ordered = [jnp.sum(jnp.where(here, a[..., None], 0), axis=1) for a in (experts, weights)]
    return ordered[0].astype(experts.dtype), ordered[1]


def _product(
    rows: jax.Array, ids: jax.Array, matrix: jax.Array, scale: jax.Array | None
) -> jax.Array:
    """Each row times its expert's matrix: [s, i], int32[s], [e, i, o] and [e, o] to [s, o]."""
    e, i, o = matrix.shape
    run = next(n for n in range(min(i, _FIRST_RUN), 0, -1) if i % n == 0)
    numbers = rows.astype(jnp.float32).reshape(len(rows), -1, run, 1)
    lines = matrix.reshape(e, -1, run, o)

    def line(j: int) -> jax.Array:
        return lines.at[ids, :, j].get(mode="promise_in_bounds").astype(jnp.float32)

    out = _sum([numbers[:, :, j] * line(j) for j in range(run)])
    while out.shape[1] > 1:
        run = min(out.shape[1], _RUN)
        out = jnp.pad(out, ((0, 0), (0, -out.shape[1] % run), (0, 0)))
        out = out.reshape(len(rows), -1, run, o)
        out = _sum([out[:, :, j] for j in range(run)])
    return out[:, 0] if scale is None else out[:, 0] * scale[ids]


def _sum(terms: list[jax.Array]) -> jax.Array:
    """The sum of the terms in their order, which `jnp.sum` does not guarantee."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total
