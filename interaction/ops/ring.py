"""Ring caches: constant memory for a session of any length.

A ring of `capacity` slots holds the last valid positions of a session; position number o is in slot
o mod capacity. The capacity is a power of two, so that slots stay correct when counters wrap.
"""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.types import Array


class RingClock(NamedTuple):
    """How many positions of a session were written to its rings; shared by all layers."""

    written: Array  # uint32[b], number of valid positions written so far, wraps
    filled: Array  # int32[b], the same number, at most the largest capacity


def ring_capacity(window: int, turn_span: int) -> int:
    """Slots of a ring that keeps `window` keys of each query while a micro-turn is written at once.

    Args:
      window: Number of keys that a query sees.
      turn_span: Most positions that are written at once.
    """
    return 1 << (window + turn_span - 2).bit_length()


def ring_slots(clock: RingClock, valid: Array, capacity: int) -> Array:
    """Slots of new positions; invalid positions get `capacity`, which a scatter drops.

    Args:
      clock: The clock before the write.
      valid: bool[b, t].
      capacity: Slots of the ring.

    Returns:
      int32[b, t].
    """
    order = new_order(clock, valid)
    return jnp.where(valid, (order & jnp.uint32(capacity - 1)).astype(jnp.int32), capacity)


def new_order(clock: RingClock, valid: Array) -> Array:
    """Order numbers uint32[b, t] of new positions, of which bool[b, t] `valid` exist.

    An invalid position has the order of the position before it.
    """
    return clock.written[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.uint32) - jnp.uint32(1)


def advance(clock: RingClock, valid: Array, limit: int) -> RingClock:
    """The clock after the bool[b, t] `valid` positions are written; `filled` stops at `limit`."""
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)
    return RingClock(
        written=clock.written + count.astype(jnp.uint32),
        filled=jnp.minimum(clock.filled + count, limit),
    )


def slot_order(clock: RingClock, capacity: int) -> tuple[Array, Array]:
    """Which position each slot holds after a write.

    Args:
      clock: The clock after the write.
      capacity: Slots of the ring.

    Returns:
      The order number uint32[b, s] of each slot's position, and whether it has one, bool[b, s].
    """
    newest = clock.written[:, None] - jnp.uint32(1)
    slot = jnp.arange(capacity, dtype=jnp.uint32)[None]
    age = (newest - slot) & jnp.uint32(capacity - 1)
    return newest - age, age.astype(jnp.int32) < clock.filled[:, None]
