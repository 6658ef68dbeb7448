"""Attention over blocks of keys, in the order of the session: the same sums in training and step.

A session's keys come in blocks of `key_block` positions, which start at multiples of it. A query's
scores with one block give a sum of weights and a mixture of values; blocks are then added from the
oldest to the newest (FlashAttention, arXiv 2205.14135). Weights are relative to a power of two, and
another power changes them exactly as long as none that counts falls below 2 ** -126: relative to
the largest weight of their own block or of all blocks, parts have a sum of the same bits. A block
that a query does not see changes no bit either, so the result depends neither on the number of
blocks nor on where they lie.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.ops.dense import matmul
from interaction.types import Array

FIRST = 16  # positions of a session that long layers see for ever (arXiv 2309.17453 shows the need)
# Keys in a block. XLA's dot on CPUs takes another path, with other bits, for narrower ones.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 512
_LEAST = -(2.0**20)  # exponent of the weight of a key that is not seen


class Part(NamedTuple):
    """Softmax attention over some keys, not yet divided by the sum."""

    power: Array  # float32[..., rows], an integer: weights are relative to 2 ** power
    total: Array  # float32[..., rows], sum of the weights
    mixed: Array  # float32[..., rows, k], the weighted values


def key_block(window: int) -> int:
    """Keys in a block of a layer with this window: about half of it, a power of two."""
    power = 1 << max(0, window.bit_length() - 2)
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, power))


def no_part(like: Array) -> Part:
    """The part of no keys for rows float[..., rows, k]."""
    power = jnp.full(like.shape[:-1], _LEAST, jnp.float32)
    return Part(power, jnp.zeros_like(power), jnp.zeros(like.shape, jnp.float32))


def weigh(scores: Array) -> tuple[Array, Array]:
    """exp(scores) as numbers in [1, 2) times powers of two.

    Args:
      scores: float32[..., rows, s], -inf where a query does not see a key; so are those below -7e5.

    Returns:
      The numbers and the exponents, both float32[..., rows, s].
    """
    # The limit also keeps compilers from fusing the product with the difference, in some programs
    # and not in others, with other bits.
    exponent = jnp.maximum(scores * np.float32(1 / np.log(2)), _LEAST)
    power = jnp.floor(exponent)
    return jnp.exp2(exponent - power), power


def largest(power: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """The largest exponent of float32[..., rows, s] over `axes`, which are kept with size 1.

    It is more than that of keys that are not seen, which so have weight 0.
    """
    return jnp.maximum(jnp.max(power, axis=axes, keepdims=True), _LEAST + 128)


def visit(fraction: Array, power: Array, top: Array, values: Array) -> Part:
    """The part of a block, or of each of several.

    Args:
      fraction: float32[..., rows, s], from `weigh`.
      power: float32[..., rows, s], from `weigh`.
      top: float32[..., rows, 1], power to which the weights are relative, from `largest`.
      values: float[..., s, k].
    """
    weights = fraction * power_of_two(power - top)
    mixed = matmul(weights.astype(values.dtype), values)
    top = jnp.broadcast_to(top, (*power.shape[:-1], 1))[..., 0]
    return Part(top, jnp.sum(weights, axis=-1), mixed)


def add(older: Part, newer: Part) -> Part:
    """The part of both."""
    power = jnp.maximum(older.power, newer.power)
    keep, more = power_of_two(older.power - power), power_of_two(newer.power - power)
    total = older.total * keep + newer.total * more
    mixed = older.mixed * keep[..., None] + newer.mixed * more[..., None]
    return Part(power, total, mixed)


def power_of_two(exponent: Array) -> Array:
    """2 ** float32[...] integers of at most 127, exactly; 0 below 2 ** -126."""
    biased = jnp.maximum(exponent, -127).astype(jnp.int32) + 127
    return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)


def log_total(part: Part) -> Array:
    """Logarithm of the sum of exp(scores), float32[..., rows]; inf where a query sees no key."""
    unseen = part.total == 0
    logarithm = part.power * np.float32(np.log(2)) + jnp.log(jnp.where(unseen, 1.0, part.total))
    return jnp.where(unseen, jnp.inf, logarithm)


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
