"""The result that the exchange must have: all experts and tokens on one device, in plain jnp."""

import jax
import jax.numpy as jnp


def chosen_pairs(experts: jax.Array, num_experts: int) -> jax.Array:
    """Which token chose which expert.

    Args:
      experts: int32[t, k], the experts that each token chose.
      num_experts: Number of experts.

    Returns:
      bool[num_experts, t].
    """
    return jnp.any(experts == jnp.arange(num_experts)[:, None, None], axis=-1)


def dispatch_reference(
    x: jax.Array, experts: jax.Array, num_experts: int
) -> tuple[jax.Array, jax.Array]:
    """Rows sorted by expert, then token.

    Args:
      x: bfloat16 or float32 [t, d], the tokens.
      experts: int32[t, k], the experts that each token chose.
      num_experts: Number of experts.

    Returns:
      [t * min(k, num_experts), d] in x's dtype, zero past the last row, and int32[num_experts], the
      rows of each expert.
    """
    chosen = chosen_pairs(experts, num_experts)
    total = len(x) * min(experts.shape[1], num_experts)
    if total == 0:
        return x[:0], jnp.zeros(num_experts, jnp.int32)
    order = jnp.argsort(~chosen.reshape(-1), stable=True)[:total]
    valid = chosen.reshape(-1)[order]
    rows = jnp.where(valid[:, None], x[order % len(x)], jnp.zeros((), x.dtype))
    return rows, jnp.sum(chosen, axis=1, dtype=jnp.int32)


def combine_reference(
    y: jax.Array, experts: jax.Array, weights: jax.Array, num_experts: int
) -> jax.Array:
    """Each token's rows, weighted and summed by ascending expert in float32.

    Args:
      y: bfloat16 or float32 [t * min(k, num_experts), d], rows in the order of
        `dispatch_reference`.
      experts: int32[t, k], the experts that each token chose.
      weights: float32[t, k], the router's weights.
      num_experts: Number of experts.

    Returns:
      [t, d] in y's dtype.
    """
    chosen = chosen_pairs(experts, num_experts)
    row = (jnp.cumsum(chosen.reshape(-1)) - 1).reshape(chosen.shape)
    total = jnp.zeros((len(experts), y.shape[1]), jnp.float32)
    if y.size == 0:
        return total.astype(y.dtype)
    for expert in range(num_experts):
        weight = jnp.sum(jnp.where(experts == expert, weights, 0.0), axis=1)
        part = weight[:, None] * y[row[expert]].astype(jnp.float32)
        total = total + jnp.where(chosen[expert][:, None], part, 0.0)
    return total.astype(y.dtype)
