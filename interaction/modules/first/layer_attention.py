"""Attention of one layer: over complete sessions, or over new positions and a ring cache."""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.distributed.collectives import SEQUENCE, gather, take_part
from interaction.modules.memory import Cache
from interaction.ops.attention import (
    BLOCKWISE_FROM,
    attention_batch,
    attention_blockwise,
    window_mask,
)
from interaction.types import Array


class SequenceKeys(NamedTuple):
    """The keys are the positions of complete sessions, of all devices along `sequence`."""

    order: Array  # uint32[b, s], counts valid positions; an invalid one has that of the one before
    valid: Array  # bool[b, s]


class RingKeys(NamedTuple):
    """The keys are those in a ring cache after the new positions are written to it."""

    slots: Array  # int32[b, t], slot of each new position; one equal to the capacity is dropped
    mask: Array  # bool[b, t, s], which slots each new position sees


class AttentionContext(NamedTuple):
    """The keys, cache and window of one layer."""

    keys: SequenceKeys | RingKeys
    cache: Cache | None  # None with SequenceKeys
    layer: Array  # int32[], index among the layers of its kind
    window: int  # keys that a query sees, that of its position included


def attend(
    q: Array, k: Array, v: Array, sink: Array, context: AttentionContext
) -> tuple[Array, Cache | None]:
    """Attention of a layer's positions, which are written to the ring cache if there is one.

    Args:
      q: float[b, t, h, k].
      k: float[b, t, g, k]; g divides h.
      v: float[b, t, g, k].
      sink: float32[h].
      context: Keys, cache and window of the layer.

    Returns:
      [b, t, h, k] in q's dtype, and the cache with the new positions.
    """
    if isinstance(context.keys, RingKeys):
        return _attend_ring(q, k, v, sink, context.keys, context)
    return _attend_sequence(q, k, v, sink, context.keys, context.window), context.cache


def _attend_ring(
    q: Array, k: Array, v: Array, sink: Array, keys: RingKeys, context: AttentionContext
) -> tuple[Array, Cache]:
    if context.cache is None:
        raise ValueError("context.cache: got None beside RingKeys, wanted a Cache; pass both")
    place = (jnp.arange(len(q))[:, None], context.layer, keys.slots)
    cache = Cache(
        context.cache.k.at[place].set(k, mode="drop"), context.cache.v.at[place].set(v, mode="drop")
    )
    mine = cache.k[:, context.layer], cache.v[:, context.layer]
    return attention_batch(q, *mine, keys.mask, sink), cache


def _attend_sequence(
    q: Array, k: Array, v: Array, sink: Array, keys: SequenceKeys, window: int
) -> Array:
    mine = take_part(keys.order, SEQUENCE, dim=1)
    k, v = gather(k, SEQUENCE, dim=1), gather(v, SEQUENCE, dim=1)
    if k.shape[1] > BLOCKWISE_FROM:
        return attention_blockwise(q, k, v, mine, keys.order, keys.valid, window, sink)
    return attention_batch(q, k, v, window_mask(mine, keys.order, keys.valid, window), sink)
