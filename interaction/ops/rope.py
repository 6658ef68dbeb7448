"""Rotary position embedding (arXiv 2104.09864) with integer phases that wrap and stay exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.types import Array


def rope_steps(head_dim: int, base: float) -> np.ndarray:
    """Phase advance per position of each rotated pair, in units of 2**-32 turns.

    Args:
      head_dim: Size of a head, even.
      base: The longest wavelength is about 2 pi * base positions.

    Returns:
      uint32[head_dim / 2].
    """
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    return np.round(frequency * 2.0**32).astype(np.uint32)


class Turn(NamedTuple):
    """The angles by which `rotate` turns each position."""

    cos: Array  # float32[b, t, head_dim / 2]
    sin: Array  # float32[b, t, head_dim / 2]


def rope_angles(position: Array, head_dim: int, base: float) -> Array:
    """Angles of positions; exact at any position, since phase = position * step mod 2**32.

    Args:
      position: uint32[...], may have wrapped.
      head_dim: Size of a head, even.
      base: The longest wavelength is about 2 pi * base positions.

    Returns:
      float32[..., head_dim / 2] in rad, in [-pi, pi).
    """
    phase = position[..., None].astype(jnp.uint32) * jnp.asarray(rope_steps(head_dim, base))
    signed = jax.lax.bitcast_convert_type(phase, jnp.int32)
    return signed.astype(jnp.float32) * np.float32(2 * np.pi / 2.0**32)


def rope_turn(position: Array, head_dim: int, base: float) -> Turn:
    """Cosines and sines of `rope_angles`, computed once for all layers.

    Args:
      position: uint32[b, t], may have wrapped.
      head_dim: Size of a head, even.
      base: The longest wavelength is about 2 pi * base positions.

    Returns:
      Cosines and sines, float32[b, t, head_dim / 2].
    """
    angles = rope_angles(position, head_dim, base)
    return Turn(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Array, turn: Turn) -> Array:
    """Turns the pairs (i, i + k/2) of each head.

    Args:
      x: float[b, t, heads, k].
      turn: Angles of the positions.

    Returns:
      [b, t, heads, k] in x's dtype.
    """
    cos, sin = turn.cos[:, :, None], turn.sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
