"""Attention of one layer of the decoder: over complete sessions, or over rings of earlier keys."""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.distributed.collectives import SEQUENCE, gather
from interaction.ops.ring_attention import Ring, attention_ring, write
from interaction.ops.sequence_attention import Sight, attention_sequence
from interaction.types import Array


class Keys(NamedTuple):
    """The keys of one layer."""

    sight: Sight
    written: Array  # int32[b], index of the first new position
    ring: Ring | None  # earlier keys; None: there are none, the new positions are the sessions
    layer: Array | int  # int32[], index among the layers of the rings


def attend(
    q: Array, k: Array, v: Array, states: Array, bank: Array, keys: Keys, count: Array | None
) -> tuple[Array, Keys]:
    """Attention of a layer's positions, which are written to the ring if there is one.

    Args:
      q: float[b, t, h, k].
      k: float[b, t, g, k]; g divides h.
      v: float[b, t, g, k].
      states: float[b, t, h, r], see `ops.relative_bias`.
      bank: float[r, extent].
      keys: The keys before these positions.
      count: int32[b], positions that exist; None without a ring.

    Returns:
      [b, t, h, k] in q's dtype, and the keys with the new positions.
    """
    if keys.ring is None or count is None:
        k, v = gather(k, SEQUENCE, dim=1), gather(v, SEQUENCE, dim=1)
        start = jnp.min(keys.written)  # the same for all sessions
        return attention_sequence(q, k, v, states, bank, start, keys.sight), keys
    ring = write(keys.ring, keys.layer, k, v, keys.written, count)
    place = keys.layer, keys.written, count
    mixed = attention_ring(q, states, bank, ring, *place, keys.sight)
    return mixed, keys._replace(ring=ring)
