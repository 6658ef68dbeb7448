"""Root-mean-square normalisation (arXiv 1910.07467)."""

import jax
import jax.numpy as jnp

from interaction.types import Array

NORM_EPS = 1e-6


def rms_norm(x: Array, scale: Array) -> Array:
    """Normalises the last axis in float32.

    Args:
      x: float[..., d].
      scale: float32[d].

    Returns:
      [..., d] in x's dtype.
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + NORM_EPS)
    return (wide * inverse * scale).astype(x.dtype)
