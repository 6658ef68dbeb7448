"""Attention with Inkling's relative bias over rings: constant memory for a session of any length.

A ring of whole blocks holds the newest positions of a session; position i is in slot i mod
capacity. It has room for the window, the positions that a step writes, and one block more, so two
blocks never share slots while a query sees either. The first positions of a session, which long
layers see for ever, are kept beside it. The parts of the blocks are added from the oldest to the
newest, wherever they lie: the order of sums is that of `sequence_attention`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.ops import block_attention as blocks
from interaction.ops.block_attention import FIRST
from interaction.ops.dense import matmul
from interaction.ops.relative_bias import block_bias
from interaction.ops.sequence_attention import Sight
from interaction.types import Array

_UNROLLED = 16  # most blocks whose parts are added without a loop


class Ring(NamedTuple):
    """Keys and values of the layers of one kind."""

    k: Array  # float[b, l, s, g, k]
    v: Array  # float[b, l, s, g, k]
    first_k: Array | None  # float[b, l, FIRST, g, k], of long layers
    first_v: Array | None  # float[b, l, FIRST, g, k]


def capacity(window: int, span: int) -> int:
    """Slots of a ring, a multiple of the key block.

    Args:
      window: Newest keys that a query sees.
      span: Most positions of a session that are written at once.
    """
    block = blocks.key_block(window)
    return -(-(window + span - 1 + block) // block) * block


def write(ring: Ring, layer: Array | int, k: Array, v: Array, written: Array, count: Array) -> Ring:
    """Writes new positions of one layer; those from `count` on are dropped.

    Args:
      ring: The rings before them.
      layer: int32[], index of the layer.
      k: float[b, t, g, k].
      v: float[b, t, g, k].
      written: int32[b], index of the first new position.
      count: int32[b], new positions that exist.
    """
    b, t = k.shape[:2]
    slots = ring.k.shape[2]
    new = jnp.arange(t)
    index = written[:, None] + new
    exists = new < count[:, None]
    rows = jnp.arange(b)[:, None]

    def put(leaf: Array, values: Array, place: Array) -> Array:
        return leaf.at[rows, layer, place].set(values.astype(leaf.dtype), mode="drop")

    place = jnp.where(exists, index % slots, slots)
    k_ring, v_ring = put(ring.k, k, place), put(ring.v, v, place)
    if ring.first_k is None or ring.first_v is None:
        return Ring(k_ring, v_ring, None, None)
    place = jnp.where(exists & (index < FIRST), index, FIRST)
    return Ring(k_ring, v_ring, put(ring.first_k, k, place), put(ring.first_v, v, place))


def attention_ring(
    q: Array,
    states: Array,
    bank: Array,
    ring: Ring,
    layer: Array | int,
    written: Array,
    count: Array,
    sight: Sight,
) -> Array:
    """Attention of new positions, after they were written.

    Args:
      q: float[b, t, h, k], of which the first `count` exist; t is at most the ring's span.
      states: float[b, t, h, r], see `relative_bias`.
      bank: float[r, extent].
      ring: The rings with the new positions.
      layer: int32[], index of the layer.
      written: int32[b], index of the first new position.
      count: int32[b].
      sight: What the queries see.

    Returns:
      [b, t, h, k] in q's dtype; unspecified but finite where a position does not exist.
    """
    mine = jax.tree.map(lambda leaf: leaf[:, layer], ring)

    def session(q: Array, states: Array, ring: Ring, written: Array, count: Array) -> Array:
        return _session(q, states, bank, ring, written, count, sight)

    return jax.vmap(session)(q, states, mine, written, count)


def _session(
    q: Array, states: Array, bank: Array, ring: Ring, written: Array, count: Array, sight: Sight
) -> Array:
    t, h, dim = q.shape
    s, g = ring.k.shape[:2]
    size = blocks.key_block(sight.window)
    number = s // size
    index = written + jnp.arange(t)
    if sight.sharpen_from:
        visible = sight.window + sight.first
        q, states = (blocks.sharpen(x, index, visible, sight.sharpen_from) for x in (q, states))
    rows = q.reshape(t, g, -1, dim).transpose(1, 2, 0, 3).reshape(g, -1, dim)
    heads = h // g

    def score(k: Array, at: Array, seen: Array) -> Array:
        """Scores with block `at` of the session's keys, float[size, g, k]."""
        products = matmul(rows, k.transpose(1, 2, 0)) * (1.0 / dim)
        bias = block_bias(states, bank, written - at * size, size)
        scores = products + bias.reshape(products.shape)
        return jnp.where(jnp.tile(seen, (heads, 1)), scores, -jnp.inf)

    newest = (written + count - 1) // size
    held = newest - (newest - jnp.arange(number)) % number  # blocks in the order of the slots
    key = held[:, None] * size + jnp.arange(size)
    distance = index[:, None] - key[:, None, :]
    seen = (distance >= 0) & ((distance < sight.window) | (key < sight.first)[:, None, :])
    seen &= (key >= 0)[:, None, :]
    k, v = (x.reshape(number, size, g, dim) for x in (ring.k, ring.v))
    fraction, power = blocks.weigh(jax.vmap(score)(k, held, seen))
    top = blocks.largest(power, axes=(0, -1))
    if ring.first_k is None or ring.first_v is None:
        total = blocks.no_part(rows)
    else:
        rest = ((0, size - FIRST), (0, 0), (0, 0))
        k, first_v = jnp.pad(ring.first_k, rest), jnp.pad(ring.first_v, rest)
        away = (newest >= number) & (jnp.arange(size) < sight.first)  # the ring has lost block 0
        first = blocks.weigh(score(k, jnp.int32(0), jnp.broadcast_to(away, (t, size))))
        top = jnp.maximum(top, blocks.largest(first[1])[None])
        total = blocks.visit(*first, top[0], first_v.transpose(1, 0, 2))
    parts = blocks.visit(fraction, power, top, v.transpose(0, 2, 1, 3))
    oldest_first = (newest + 1 + jnp.arange(number)) % number
    parts = jax.tree.map(lambda leaf: leaf[oldest_first], parts)
    total = total._replace(power=top[0, ..., 0])
    if number <= _UNROLLED:
        for i in range(number):
            # All are relative to the same power: what is left of `add`.
            total = total._replace(
                total=total.total + parts.total[i], mixed=total.mixed + parts.mixed[i]
            )
    else:
        total = jax.lax.scan(lambda x, one: (blocks.add(x, one), None), total, parts)[0]
    out = blocks.finish(total).reshape(g, heads, t, dim).transpose(2, 0, 1, 3)
    return out.reshape(t, h, dim).astype(q.dtype)
