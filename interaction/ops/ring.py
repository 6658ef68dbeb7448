"""Ring caches: constant memory for a session of any length.

A ring of `capacity` slots (a power of two, so that slots stay right when counters wrap) holds the
last valid positions of a session. Position number o lives in slot o mod capacity.
"""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.types import Array


class RingClock(NamedTuple):
    """How far a session's rings are written; shared by all layers."""

    written: Array  # uint32[b], valid positions ever written, wraps
    filled: Array  # int32[b], the same, stopping at the longest capacity


def ring_capacity(window: int, turn_span: int) -> int:
    """Slots that keep `window` keys of every query while a whole micro-turn is written at once."""
    return 1 << (window + turn_span - 2).bit_length()


def ring_slots(clock: RingClock, valid: Array, capacity: int) -> Array:
    """Slots for the new positions; invalid ones get `capacity`, which a scatter drops.

    Args:
      clock: Before the write.
      valid: bool[b, t].
      capacity: Of this ring.

    Returns:
      int32[b, t].
    """
    order = new_order(clock, valid)
    return jnp.where(valid, (order & jnp.uint32(capacity - 1)).astype(jnp.int32), capacity)


def new_order(clock: RingClock, valid: Array) -> Array:
    """Order numbers of new positions, uint32[b, t]; an invalid one shares its predecessor's."""
    return clock.written[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.uint32) - jnp.uint32(1)


def advance(clock: RingClock, valid: Array, limit: int) -> RingClock:
    """The clock after the write of bool[b, t] `valid` positions."""
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)
    return RingClock(
        written=clock.written + count.astype(jnp.uint32),
        filled=jnp.minimum(clock.filled + count, limit),
    )


def slot_order(clock: RingClock, capacity: int) -> tuple[Array, Array]:
    """What each slot holds after a write.

    Args:
      clock: After the write.
      capacity: Of this ring.

    Returns:
      Order number uint32[b, s] of each slot's content and whether it has any, bool[b, s].
    """
    newest = clock.written[:, None] - jnp.uint32(1)
    slot = jnp.arange(capacity, dtype=jnp.uint32)[None]
    age = (newest - slot) & jnp.uint32(capacity - 1)
    return newest - age, age.astype(jnp.int32) < clock.filled[:, None]
