"""Router of the mixture of experts (DeepSeek-V3, arXiv 2412.19437)."""

import jax
import jax.numpy as jnp

from interaction.types import Array


def route(logits: Array, bias: Array, top_k: int) -> tuple[Array, Array]:
    """Chooses experts by sigmoid scores plus a bias; the bias does not enter the weights.

    Args:
      logits: float32[t, e].
      bias: float32[e].
      top_k: Number of experts of a token.

    Returns:
      The chosen experts int32[t, top_k], ascending, and their weights float32[t, top_k], which
      sum to one.
    """
    scores = jax.nn.sigmoid(logits)
    _, chosen = jax.lax.top_k(scores + bias, top_k)
    chosen = jnp.sort(chosen, axis=-1)
    # A selection instead of a gather, whose gradient would be a scatter.
    mine = chosen[..., None] == jnp.arange(logits.shape[-1])
    kept = jnp.sum(jnp.where(mine, scores[:, None, :], 0.0), axis=-1)
    return chosen, kept / (jnp.sum(kept, axis=-1, keepdims=True) + 1e-20)


def route_with_shared(
    logits: Array, bias: Array, top_k: int, shared: int, scale: Array
) -> tuple[Array, Array, Array]:
    """Inkling's router: chooses like `route`, and weighs the shared experts beside the chosen ones.

    The weights are the sigmoid scores of the chosen and of the shared experts, divided by their
    sum and multiplied by `scale`.

    Args:
      logits: float32[t, e + shared]; the last ones are the shared experts'.
      bias: float32[e].
      top_k: Number of routed experts of a token.
      shared: Number of shared experts.
      scale: float32[], factor of all weights.

    Returns:
      The chosen experts int32[t, top_k], ascending, their weights float32[t, top_k], and those of
      the shared experts float32[t, shared].
    """
    routed = logits[:, : logits.shape[1] - shared]
    _, chosen = jax.lax.top_k(jax.nn.sigmoid(routed) + bias, top_k)
    chosen = jnp.sort(chosen, axis=-1)
    mine = chosen[..., None] == jnp.arange(routed.shape[1])
    kept = jnp.sum(jnp.where(mine, routed[:, None, :], 0.0), axis=-1)
    scores = jax.nn.log_sigmoid(jnp.concatenate([kept, logits[:, routed.shape[1] :]], axis=-1))
    weights = jax.nn.softmax(scores, axis=-1) * scale
    return chosen, weights[:, :top_k], weights[:, top_k:]


def load(chosen: Array, valid: Array, experts: int) -> Array:
    """Number of tokens that each expert took.

    Args:
      chosen: int32[t, top_k].
      valid: bool[t], tokens that count; padding does not count.
      experts: Number of experts.

    Returns:
      float32[experts].
    """
    mine = chosen[..., None] == jnp.arange(experts)
    return jnp.sum(mine & valid[:, None, None], axis=(0, 1), dtype=jnp.float32)


def update_bias(bias: Array, load: Array, rate: float) -> Array:
    """Moves the selection bias towards an even load, without an auxiliary loss.

    Args:
      bias: float32[l, e].
      load: float32[l, e], tokens that each expert took, without padding.
      rate: Size of the step.

    Returns:
      float32[l, e].
    """
    return bias + rate * jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)
