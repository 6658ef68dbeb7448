"""`gather_gemv` for CPUs: each choice of each token multiplies with its own expert's weights.

XLA fuses the gather of the weights with vector-matrix products, one for each choice, so that
nothing is computed for experts that a token did not choose and no product sees two tokens.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.gather_gemv.reference import Scales

# How XLA fuses and sums depends on shapes: give it the same one for any number of tokens.
_TILE = 4
_RUN = 256  # numbers summed one after the other: rounding errors grow with it


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
    t, d = x.shape
    pad = ((0, -t % _TILE), (0, 0))
    tokens = (jnp.pad(x, pad), jnp.pad(experts, pad, constant_values=-1), jnp.pad(weights, pad))

    def run(tile: tuple[jax.Array, ...]) -> jax.Array:
        # Nothing before or after is fused with a tile: that too would change the order.
        x, experts, weights = jax.lax.optimization_barrier(tile)
        out = _choices(x, experts, weights, gate, up, down, scales)
        return jax.lax.optimization_barrier(out)

    tiles = jax.tree.map(lambda a: a.reshape(-1, _TILE, a.shape[1]), tokens)
    return jax.lax.map(run, tiles).reshape(-1, d)[:t]


def _choices(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
) -> jax.Array:
    t, k = experts.shape
    ids = jnp.clip(experts, 0, len(gate) - 1).reshape(-1)

    def product(rows: jax.Array, matrix: jax.Array, scale: jax.Array | None) -> jax.Array:
        _, i, o = matrix.shape
        run = next(n for n in range(min(i, _RUN), 0, -1) if i % n == 0)
        rows = rows.astype(jnp.float32).reshape(t * k, -1, run)
        chosen = matrix[ids].astype(jnp.float32).reshape(t * k, -1, run, o)
        out = jnp.einsum("sbi,sbio->sbo", rows, chosen, precision=jax.lax.Precision.HIGHEST)
        out = jnp.sum(out, axis=1)
        return out if scale is None else out * scale[ids]

    gate_scale, up_scale, down_scale = scales or (None, None, None)
    rows = jnp.repeat(x, k, axis=0)
    hidden = jax.nn.silu(product(rows, gate, gate_scale)) * product(rows, up, up_scale)
    hidden = (hidden * weights.reshape(-1, 1)).astype(x.dtype)
    parts = product(hidden, down, down_scale).reshape(t, k, -1)
    exists = ((experts >= 0) & (experts < len(gate)))[..., None]
    parts = jnp.where(exists, parts, 0.0)
    # Each choice's place among its token's, in ascending order of the experts.
    earlier = jnp.tril(jnp.ones((k, k), bool), -1)
    before = experts[:, None, :] < experts[:, :, None]
    before |= (experts[:, None, :] == experts[:, :, None]) & earlier
    place = jnp.sum(before, axis=-1)
    total = jnp.zeros((t, x.shape[1]), jnp.float32)
    for wanted in range(k):
        here = (place == wanted)[..., None]
        total += jnp.sum(jnp.where(here, parts, 0.0), axis=1)
    return total.astype(x.dtype)
