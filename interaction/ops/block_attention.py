"""Attention over blocks of keys, in the order of the session: the same sums in training and step.

A session's keys come in blocks of `key_block` positions, which start at multiples of it. A query's
scores with one block give that block's maximum, sum and mixture of values; blocks are then added
from the oldest to the newest, with a running maximum (FlashAttention, arXiv 2205.14135). A block
that a query does not see changes no bit, so the result depends neither on the number of blocks nor
on where they lie.
"""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.ops.dense import matmul
from interaction.types import Array

FIRST = 16  # positions of a session that long layers see for ever (arXiv 2309.17453 shows the need)
# Keys in a block. XLA's dot on CPUs takes another path, with other bits, for narrower ones.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 512


class Part(NamedTuple):
    """Softmax attention over some keys, not yet divided by the sum."""

    top: Array  # float32[..., rows], largest score; -inf where a query sees no key
    total: Array  # float32[..., rows], sum of exp(score - top)
    mixed: Array  # float32[..., rows, k], the values weighted by exp(score - top)


def key_block(window: int) -> int:
    """Keys in a block of a layer with this window: about half of it, a power of two."""
    power = 1 << max(0, window.bit_length() - 2)
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, power))


def no_part(like: Array) -> Part:
    """The part of no keys for rows float[..., rows, k]."""
    top = jnp.full(like.shape[:-1], -jnp.inf, jnp.float32)
    return Part(top, jnp.zeros_like(top), jnp.zeros(like.shape, jnp.float32))


def visit(scores: Array, values: Array) -> Part:
    """The part of one block.

    Args:
      scores: float32[..., rows, s], -inf where a query does not see a key.
      values: float[..., s, k].
    """
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - jnp.where(top == -jnp.inf, 0.0, top)[..., None])
    return Part(top, jnp.sum(weights, axis=-1), matmul(weights.astype(values.dtype), values))


def add(older: Part, newer: Part) -> Part:
    """The part of both."""
    top = jnp.maximum(older.top, newer.top)
    shift = jnp.where(top == -jnp.inf, 0.0, top)
    keep, more = jnp.exp(older.top - shift), jnp.exp(newer.top - shift)
    total = older.total * keep + newer.total * more
    mixed = older.mixed * keep[..., None] + newer.mixed * more[..., None]
    return Part(top, total, mixed)


def finish(part: Part) -> Array:
    """Attention float32[..., rows, k]; zero where a query sees no key."""
    return part.mixed / jnp.where(part.total == 0, 1.0, part.total)[..., None]


def sharpen(x: Array, index: Array, visible: int, start: int) -> Array:
    """Scales queries that see more than `start` keys, or their states (Inkling's log scaling).

    Scores are scaled through them: a factor of the scores would be fused with a later subtraction
    in some programs and not in others, with other bits.

    Args:
      x: float[t, h, k].
      index: int32[t], index of the query in its session.
      visible: Most keys that a query sees.
      start: Number of keys from which scores grow.

    Returns:
      [t, h, k] in x's dtype, times 1 + 0.1 * log(keys / start) where that is more than 1.
    """
    keys = jnp.minimum(index + 1, visible).astype(jnp.float32)
    factor = 1.0 + 0.1 * jnp.log(jnp.maximum(keys / start, 1.0))
    return (x.astype(jnp.float32) * factor[:, None, None]).astype(x.dtype)
