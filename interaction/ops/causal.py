"""Causal convolutions over frames; a stream carries the frames that the kernel looks back on."""

import jax
import jax.numpy as jnp

from interaction.types import Array


def depthwise(past: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
    """Convolution of each channel on its own, as a sum of shifted products.

    Args:
      past: [b, k - 1, d], the frames before `x`; zeros at the start of a stream.
      x: [b, frames, d].
      kernel: [k, d]; the last row weighs the current frame.

    Returns:
      The new `past`, and [b, frames, d].
    """
    taps, frames = kernel.shape[0], x.shape[1]
    joined = jnp.concatenate([past, x], axis=1)
    parts = [joined[:, i : i + frames] * kernel[i] for i in range(taps)]
    out = sum(parts[1:], start=parts[0])
    return joined[:, frames:], out


def context(past: Array, x: Array) -> tuple[Array, Array]:
    """Each frame beside the frames before it, for a convolution as one matrix product.

    Args:
      past: [b, k - 1, d], the frames before `x`; zeros at the start of a stream.
      x: [b, frames, d].

    Returns:
      The new `past`, and [b, frames, k * d], oldest frame first.
    """
    reach, frames = past.shape[1], x.shape[1]
    joined = jnp.concatenate([past, x], axis=1)
    seen = [jax.lax.slice_in_dim(joined, i, i + frames, axis=1) for i in range(reach + 1)]
    return joined[:, frames:], jnp.concatenate(seen, axis=-1)


def overlap_add(tail: Array, frames: Array, hop: int) -> tuple[Array, Array]:
    """Sum of overlapping frames, as much of it as later frames cannot change.

    Args:
      tail: [b, length - hop], what earlier frames still add; zeros at the start of a stream.
      frames: [b, n, length]; frame i begins at sample i * hop.
      hop: Samples between frames, <= length.

    Returns:
      The new tail, and [b, n * hop] samples.
    """
    b, n, length = frames.shape
    hops = -(-length // hop)  # hops that a frame touches
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, hops * hop - length)))
    parts = frames.reshape(b, n, hops, hop)
    total = jnp.pad(tail, ((0, 0), (0, (n + hops - 1) * hop - tail.shape[1])))
    total = total.reshape(b, n + hops - 1, hop)
    for i in reversed(range(hops)):  # oldest frame first, whatever the chunk
        total = total.at[:, i : i + n].add(parts[:, :, i])
    total = total.reshape(b, -1)
    return total[:, n * hop : n * hop + length - hop], total[:, : n * hop]
