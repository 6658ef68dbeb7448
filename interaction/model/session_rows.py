"""Sessions that move: a row out of a batch and into another one, and micro-turns taken back.

A row that is taken out holds nothing of earlier sessions: slots that the session has not written
are zero. Micro-turns are taken back with a log: before each step it keeps the small leaves of the
state and the slots that the step may overwrite.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.model.session_state import StreamState
from interaction.modules.layer_attention import Cache
from interaction.ops import ring
from interaction.types import Array


def take_row(state: StreamState, row: Array | int) -> StreamState:
    """A copy of one session.

    Args:
      state: State of b sessions.
      row: int32[], the session's row.

    Returns:
      State of one session, whose unwritten slots are zero.
    """
    one = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), state)

    def written(leaf: Array) -> Array:
        held = ring.slot_order(one.rings, leaf.shape[2])[1]
        return jnp.where(held[:, None, :, None, None], leaf, jnp.zeros_like(leaf))

    return one._replace(caches=jax.tree.map(written, one.caches))


def put_row(state: StreamState, row: Array | int, one: StreamState) -> StreamState:
    """The state with a session from `take_row` in a row.

    Args:
      state: State of b sessions.
      row: int32[], the row.
      one: State of one session.
    """
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, row, 0), state, one
    )


class Undo(NamedTuple):
    """What a step changes, from before it."""

    small: StreamState  # the state without caches
    slots: dict[str, Array]  # int32[b, t], the slots that follow the newest one, by kind of layer
    caches: dict[str, Cache]  # [b, l, t, g, k], their contents


def before_step(config: ModelConfig, state: StreamState) -> Undo:
    """The entry of the log for a step from `state`, which writes at most `turn_span` slots."""
    new = jnp.arange(config.turn_span, dtype=jnp.uint32)
    order = state.rings.written[:, None] + new
    slots = {
        kind: (order & jnp.uint32(cache.k.shape[2] - 1)).astype(jnp.int32)
        for kind, cache in state.caches.items()
    }

    def held(leaf: Array, at: Array) -> Array:
        return jnp.take_along_axis(leaf, at[:, None, :, None, None], axis=2)

    caches = {
        kind: Cache(held(cache.k, slots[kind]), held(cache.v, slots[kind]))
        for kind, cache in state.caches.items()
    }
    return Undo(state._replace(caches={}), slots, caches)


def take_back(state: StreamState, undo: Undo, row: Array | int) -> StreamState:
    """The state with one session as it was before the step of `undo`, its newest that is left.

    Args:
      state: State of b sessions.
      undo: The entry of that step.
      row: int32[], the session's row.
    """

    def row_of(leaf: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(leaf, row, keepdims=False)

    def back(leaf: Array, old: Array, slots: Array) -> Array:
        rest = jnp.moveaxis(row_of(old), 1, 0)  # an index array beside `row` puts its axis first
        return leaf.at[row, :, row_of(slots)].set(rest)

    small = jax.tree.map(
        lambda leaf, old: leaf.at[row].set(row_of(old)), state._replace(caches={}), undo.small
    )
    caches = {
        kind: jax.tree.map(partial(back, slots=undo.slots[kind]), cache, undo.caches[kind])
        for kind, cache in state.caches.items()
    }
    return small._replace(caches=caches)
