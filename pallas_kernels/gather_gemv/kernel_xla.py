"""`gather_gemv` for CPUs: each choice of each token multiplies with its own expert's weights.

A product is written as sums of a few rows of the weights each, which XLA fuses with their gather
and vectorizes along the rows. Nothing is computed for experts that a token did not choose, no
product sees two tokens, and no library decides in which order numbers are summed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.gather_gemv.reference import Scales
from pallas_kernels.varying import vary, varying

# Choices that a pass of a loop computes: as many for any number of tokens, so that XLA compiles
# the same arithmetic for all of them.
_CHOICES = 8
_FIRST_RUN = 8  # rows of the weights summed at once: with more, memory is read less evenly
_RUN = 8  # sums of such runs, summed in turn: rounding errors grow with it


def gather_gemv_xla(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
) -> jax.Array:
    """See `gather_gemv`; x has at least one row."""
    (t, d), k = x.shape, experts.shape[1]
    gate_scale, up_scale, down_scale = scales or (None, None, None)
    experts, weights = _ascending(experts, weights)
    pad = -t * k % _CHOICES
    ids = jnp.pad(experts.reshape(-1), (0, pad), constant_values=-1)
    shares = jnp.pad(weights.reshape(-1, 1), ((0, pad), (0, 0)))
    rows = jnp.pad(jnp.repeat(x, k, axis=0), ((0, pad), (0, 0)))
    exists = (ids >= 0) & (ids < len(gate))
    ids = jnp.clip(ids, 0, len(gate) - 1)
    # Known only when it runs: XLA would take the body of a loop that runs once out of the loop,
    # and fuse it with what is around it.
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

    # A loop of its own, before the next: nothing of it is computed again for each number there.
    hidden = passes(gate.shape[2], x.dtype, into)

    def out_of(mine: Callable[[jax.Array], jax.Array]) -> jax.Array:
        part = _product(mine(hidden), mine(ids), down, down_scale)
        return jnp.where(mine(exists)[:, None], part, 0.0)

    parts = passes(d, jnp.float32, out_of)[: t * k].reshape(t, k, d)
    return _sum([parts[:, choice] for choice in range(k)]).astype(x.dtype)


def _ascending(experts: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each token's choices in ascending order of the experts; by comparing all pairs."""
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
    """One after the other, which `jnp.sum` would not promise."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total
