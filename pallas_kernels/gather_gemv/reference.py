"""The reference of `gather_gemv` in plain jnp: every expert on every token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_ROWS = 16  # tokens that are computed at once
_RUN = 64  # hidden values that are summed by one product


class Scales(NamedTuple):
    """Scales of 8-bit weights, one per output channel: weight = scale * stored value."""

    gate: jax.Array  # float32[e, f]
    up: jax.Array  # float32[e, f]
    down: jax.Array  # float32[e, d]


def precision(dtype: jax.typing.DTypeLike) -> jax.lax.Precision | None:
    """Precision of a product: HIGHEST for float32 operands, which backends may round otherwise."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def swiglu_expert(
    x: jax.Array,
    share: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None,
) -> jax.Array:
    """One expert (SwiGLU, arXiv:2002.05202) on all tokens, weighted.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      share: float32[t], the router's weight of this expert for each token.
      gate: [d, f] in x's dtype, int8 or float8_e4m3fn.
      up: [d, f] in gate's dtype.
      down: [f, d] in gate's dtype.
      scales: Scales of this expert, float32[f], float32[f] and float32[d]; None if the weights have
        none.

    Returns:
      float32[t, d].
    """

    def product(lhs: jax.Array, rhs: jax.Array, scale: jax.Array | None) -> jax.Array:
        out = jnp.dot(lhs, rhs.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return out if scale is None else out * scale

    gate_scale, up_scale, down_scale = scales or (None, None, None)
    total, wide = jnp.zeros(x.shape, jnp.float32), x.astype(jnp.float32)
    # Short sums have smaller rounding errors, here and in the gradient of x.
    for start in range(0, gate.shape[1], _RUN):
        run = slice(start, start + _RUN)
        opened, raised = (
            product(wide, matrix[:, run], None if scale is None else scale[run])
            for matrix, scale in ((gate, gate_scale), (up, up_scale))
        )
        hidden = (jax.nn.silu(opened) * raised * share[:, None]).astype(x.dtype)
        total = total + product(hidden.astype(jnp.float32), down[run], None)
    return total if down_scale is None else total * down_scale


def reference(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    scales: Scales | None = None,
) -> jax.Array:
    """Computes `gather_gemv`; the experts are summed in ascending order in float32.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      experts: int32[t, k], the experts that each token chose.
      weights: float32[t, k], the router's weights.
      gate: [e, d, f] in x's dtype, int8 or float8_e4m3fn.
      up: [e, d, f] in gate's dtype.
      down: [e, f, d] in gate's dtype.
      scales: Scales of 8-bit weights, None for others.

    Returns:
      [t, d] in x's dtype.
    """
    t, d = x.shape

    def run(tile: tuple[jax.Array, ...]) -> jax.Array:
        x, experts, weights = tile
        mine = experts[..., None] == jnp.arange(len(gate))  # [t, k, e]
        share = jnp.sum(jnp.where(mine, weights[..., None], 0.0), axis=1).T
        each = jax.vmap(swiglu_expert, in_axes=(None, 0, 0, 0, 0, 0))
        chosen = jnp.any(mine, axis=1).T[..., None]
        parts = jnp.where(chosen, each(x, share, gate, up, down, scales), 0.0)
        return jax.lax.scan(
            lambda sum_, part: (sum_ + part, None), jnp.zeros_like(parts[0]), parts
        )[0]

    def tiles(array: jax.Array, fill: int) -> jax.Array:
        padded = jnp.pad(array, ((0, -t % _ROWS), (0, 0)), constant_values=fill)
        return padded.reshape(-1, _ROWS, array.shape[1])

    # The order of summation in XLA's dot depends on the number of rows, so it is kept constant.
    total = jax.lax.map(run, (tiles(x, 0), tiles(experts, -1), tiles(weights, 0)))
    return total.reshape(-1, d)[:t].astype(x.dtype)
