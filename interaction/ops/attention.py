"""Grouped-query attention with a learned sink, over a window of positions."""

import jax
import jax.numpy as jnp

from interaction.types import Array


def window_mask(query_order: Array, key_order: Array, key_valid: Array, window: int) -> Array:
    """Which keys a query sees: the last `window` valid ones, its own included.

    Orders count a session's valid positions and may wrap: only differences are used.

    Args:
      query_order: uint32[b, t].
      key_order: uint32[b, s].
      key_valid: bool[b, s].
      window: Number of keys seen.

    Returns:
      bool[b, t, s].
    """
    age = query_order[:, :, None] - key_order[:, None, :]
    return (age < jnp.uint32(window)) & key_valid[:, None, :]


def attention(q: Array, k: Array, v: Array, mask: Array, sink: Array) -> Array:
    """Softmax attention of one session, whose denominator holds one learned logit a head.

    The sink lets a head attend to nothing, so no early position has to be kept for that
    (arXiv 2309.17453 shows the need; gpt-oss the learned form).

    Args:
      q: [t, h, k].
      k: [s, g, k], g dividing h.
      v: [s, g, k].
      mask: bool[t, s]; a query may see nothing.
      sink: float32[h].

    Returns:
      [t, h, k] in q's dtype; zero where a query sees nothing.
    """
    t, h, dim = q.shape
    s, g = k.shape[:2]
    # One matrix product for each key head: the heads that share it stack their rows.
    rows = (q * dim**-0.5).reshape(t, g, h // g, dim).transpose(1, 2, 0, 3).reshape(g, -1, dim)
    keys = k.transpose(1, 0, 2)
    if rows.shape[1] < s:  # whichever side is shorter is the one to be transposed
        scores = jnp.matmul(keys, rows.swapaxes(1, 2), preferred_element_type=jnp.float32)
        scores = scores.swapaxes(1, 2)
    else:
        scores = jnp.matmul(rows, keys.swapaxes(1, 2), preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores.reshape(h, t, s), -jnp.inf)
    sink = sink[:, None, None].astype(jnp.float32)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sink - top)
    mixed = jnp.matmul(
        weights.reshape(g, -1, s).astype(v.dtype),
        v.transpose(1, 0, 2),
        preferred_element_type=jnp.float32,
    )
    return (mixed.reshape(h, t, dim) / total).astype(q.dtype).transpose(1, 0, 2)


def attention_batch(q: Array, k: Array, v: Array, mask: Array, sink: Array) -> Array:
    """`attention` of a batch of sessions: each argument but `sink` gains a leading axis [b]."""
    return jax.vmap(attention, in_axes=(0, 0, 0, 0, None))(q, k, v, mask, sink)
