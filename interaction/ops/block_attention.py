"""Attention over blocks of keys, in the order of the session: the same sums in training and step.

A session's keys come in blocks of `key_block` positions, which start at multiples of it. A query's
scores with one block give that block's maximum, sum and mixture of values; blocks are then added
from the oldest to the newest, with a running maximum (FlashAttention, arXiv 2205.14135). A block
that a query does not see changes no bit, so the result depends neither on the number of blocks nor
on where they lie.
"""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.ops.dense import exact
from interaction.types import Array

FIRST = 16  # positions of a session that long layers see for ever (arXiv 2309.17453 shows the need)
# Keys in a block. XLA's dot on CPUs takes another path, with other bits, for narrower ones.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 512
ROWS = 12  # a multiple of so many rows has the same bits for any number of rows, see `ops.dense`


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


def matmul(a: Array, b: Array) -> Array:
    """Product of the last two axes of float[..., m, k] and float[..., k, n], float32[..., m, n]."""
    return jnp.matmul(a, b, precision=exact(a, b), preferred_element_type=jnp.float32)


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


def sharpening(index: Array, visible: int, start: int) -> Array:
    """Factor of the scores where a query sees more than `start` keys (Inkling's log scaling).

    Args:
      index: int32[...], index of the query in its session.
      visible: Most keys that a query sees.
      start: Number of keys from which scores grow.

    Returns:
      float32[...], 1 + 0.1 * log(keys / start), at least 1.
    """
    keys = jnp.minimum(index + 1, visible).astype(jnp.float32)
    return 1.0 + 0.1 * jnp.log(jnp.maximum(keys / start, 1.0))
