"""What the layers keep of a session's earlier positions: constant memory for any length."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from interaction.ops import ring
from interaction.ops.ring_attention import FIRST as FIRST_POSITIONS
from interaction.types import Array

SLIDING, LONG = "sliding", "long"  # kinds of layers
FIRST = "first"  # name of the caches of a session's first positions, of the long layers


class Cache(NamedTuple):
    """Keys and values of the layers of one kind."""

    k: Array  # float[b, l, s, g, k]
    v: Array  # float[b, l, s, g, k]


class Tails(NamedTuple):
    """The last positions that the short convolutions of the layers of one kind read."""

    key: Array  # float32[b, l, TAPS - 1, g * k]
    value: Array  # float32[b, l, TAPS - 1, g * k]
    attention: Array  # float32[b, l, TAPS - 1, d]
    ffn: Array  # float32[b, l, TAPS - 1, d]


class Memory(NamedTuple):
    """The memory of sessions. Only `caches` is large; what was never written there is not read."""

    # int32[b], index of the next position, see `decoder.run_decoder`; of the first models a
    # `ring.RingClock`
    clock: Any
    tails: dict[str, Tails]  # by kind of layer
    caches: dict[str, Cache]  # by kind of layer, and FIRST


def held(memory: Memory, name: str) -> Array:
    """Which slots of a cache hold a position of the session, bool[b, s]."""
    size = memory.caches[name].k.shape[2]
    if isinstance(memory.clock, ring.RingClock):
        return ring.slot_order(memory.clock, size)[1]
    slot, written = jnp.arange(size), memory.clock[:, None]
    if name == FIRST:
        return slot < written
    newest = written - 1
    return newest - (newest - slot) % size >= 0


def next_slots(memory: Memory, name: str, count: int) -> Array:
    """The slots int32[b, count] of a cache that the next positions may overwrite."""
    size, new = memory.caches[name].k.shape[2], jnp.arange(count)
    if isinstance(memory.clock, ring.RingClock):
        order = memory.clock.written[:, None] + new.astype(jnp.uint32)
        return (order & jnp.uint32(size - 1)).astype(jnp.int32)
    index = memory.clock[:, None] + new
    return jnp.minimum(index, FIRST_POSITIONS - 1) if name == FIRST else index % size
