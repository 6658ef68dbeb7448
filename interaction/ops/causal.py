"""Causal convolutions over frames; a stream carries the past frames that a kernel covers."""

import jax
import jax.numpy as jnp

from interaction.types import Array


def depthwise(past: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
    """Depthwise convolution, as a sum of shifted products.

    Args:
      past: float[b, k - 1, d], the frames before `x`; zeros at the start of a stream.
      x: float[b, frames, d].
      kernel: float[k, d]; the last row weighs the current frame.

    Returns:
      The new `past`, and the result [b, frames, d] in the operands' dtype.
    """
    taps, frames = kernel.shape[0], x.shape[1]
    joined = jnp.concatenate([past, x], axis=1)
    parts = [joined[:, i : i + frames] * kernel[i] for i in range(taps)]
    out = sum(parts[1:], start=parts[0])
    return joined[:, frames:], out


def context(past: Array, x: Array) -> tuple[Array, Array]:
    """Concatenates each frame with the frames before it: a convolution is then a matrix product.

    Args:
      past: float[b, k - 1, d], the frames before `x`; zeros at the start of a stream.
      x: float[b, frames, d].

    Returns:
      The new `past`, and [b, frames, k * d] in the operands' dtype, oldest frame first.
    """
    reach, frames = past.shape[1], x.shape[1]
    joined = jnp.concatenate([past, x], axis=1)
    seen = [jax.lax.slice_in_dim(joined, i, i + frames, axis=1) for i in range(reach + 1)]
    return joined[:, frames:], jnp.concatenate(seen, axis=-1)


def overlap_add(tail: Array, frames: Array, hop: int) -> tuple[Array, Array]:
    """Sum of overlapping frames, up to the first sample that later frames change.

    Args:
      tail: float32[b, length - hop], the sum of earlier frames there; zeros at the start of a
        stream.
      frames: float32[b, n, length]; frame i begins at sample i * hop.
      hop: Samples between frames, <= length.

    Returns:
      The new tail, and samples float32[b, n * hop].
    """
    b, n, length = frames.shape
    hops = -(-length // hop)  # hops that a frame overlaps
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, hops * hop - length)))
    parts = frames.reshape(b, n, hops, hop)
    total = jnp.pad(tail, ((0, 0), (0, (n + hops - 1) * hop - tail.shape[1])))
    total = total.reshape(b, n + hops - 1, hop)
    for i in reversed(range(hops)):  # oldest frame first, for every chunk size
        total = total.at[:, i : i + n].add(parts[:, :, i])
    total = total.reshape(b, -1)
    return total[:, n * hop : n * hop + length - hop], total[:, : n * hop]
