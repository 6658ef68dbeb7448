"""Router and reference dispatch of the mixture of experts (DeepSeek-V3, arXiv 2412.19437)."""

import jax
import jax.numpy as jnp

from interaction.types import Array

_FEW = 32  # tokens, up to which the experts' weights are what costs


def route(logits: Array, bias: Array, top_k: int) -> tuple[Array, Array]:
    """Sigmoid scores; a bias takes part in the selection only.

    Args:
      logits: float32[t, e].
      bias: float32[e].
      top_k: Experts a token takes.

    Returns:
      Weights float32[t, e], zero off the chosen experts and summing to one on them; and the
      choice, bool[t, e].
    """
    scores = jax.nn.sigmoid(logits)
    _, chosen = jax.lax.top_k(scores + bias, top_k)
    choice = jnp.any(chosen[..., None] == jnp.arange(logits.shape[-1]), axis=-2)
    kept = jnp.where(choice, scores, 0.0)
    return kept / (jnp.sum(kept, axis=-1, keepdims=True) + 1e-20), choice


def update_bias(bias: Array, load: Array, rate: float) -> Array:
    """Moves the selection bias towards an even load, without an auxiliary loss.

    Args:
      bias: float32[l, e].
      load: float32[l, e], tokens each expert took, padding not counted.
      rate: Step of the bias.

    Returns:
      float32[l, e].
    """
    return bias + rate * jnp.sign(jnp.mean(load, axis=-1, keepdims=True) - load)


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """SwiGLU feed-forward (arXiv 2002.05202): x [t, d], gate and up [d, f], down [f, d]."""
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def experts_reference(x: Array, weights: Array, gate: Array, up: Array, down: Array) -> Array:
    """Every expert on every token, weighted: what other dispatches must equal.

    Args:
      x: [t, d].
      weights: float32[t, e], zero for experts a token did not choose.
      gate: [e, d, f].
      up: [e, d, f].
      down: [e, f, d].

    Returns:
      [t, d] in x's dtype.
    """
    e, d, f = gate.shape
    if len(x) <= _FEW:
        each = jnp.broadcast_to(x, (e, *x.shape))
        hidden = (jax.nn.silu(each @ gate) * (each @ up)).swapaxes(0, 1)
    else:  # one product of two matrices: worth a transposed copy of the weights
        gate, up = (w.swapaxes(0, 1).reshape(d, e * f) for w in (gate, up))
        hidden = (jax.nn.silu(x @ gate) * (x @ up)).reshape(-1, e, f)
    hidden = hidden * weights[..., None].astype(x.dtype)
    return hidden.reshape(-1, e * f) @ down.reshape(e * f, d)
