"""Inkling's short convolution: causal, depthwise, added to its input, in float32."""

import jax
import jax.numpy as jnp

from interaction.types import Array

TAPS = 4


def short_convolution(
    past: Array, x: Array, kernel: Array, count: Array | None
) -> tuple[Array, Array]:
    """Adds to each position a weighted sum of it and of the positions before it.

    Args:
      past: float32[b, TAPS - 1, d], the positions before `x`; zeros at the start of a session.
      x: float[b, t, d], of which the first positions exist.
      kernel: float32[TAPS, d]; the last row weighs the position itself.
      count: int32[b], positions that exist; None where the new past is not needed.

    Returns:
      The last TAPS - 1 positions that exist (`past` itself where `count` is None), and the result
      [b, t, d] in x's dtype.
    """
    wide = x.astype(jnp.float32)
    joined = jnp.concatenate([past, wide], axis=1)
    total = wide
    for tap in range(TAPS):
        total = total + joined[:, tap : tap + x.shape[1]] * kernel[tap]
    if count is not None:
        newest = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, TAPS - 1))
        past = newest(joined, count)
    return past, total.astype(x.dtype)
