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
from interaction.model.session_state import StreamState, with_caches, without_caches
from interaction.modules.memory import Cache, held, next_slots
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

    def written(name: str, cache: Cache) -> Cache:
        mask = held(one.memory, name)[:, None, :, None, None]
        return jax.tree.map(lambda leaf: jnp.where(mask, leaf, jnp.zeros_like(leaf)), cache)

    caches = {name: written(name, cache) for name, cache in one.memory.caches.items()}
    return with_caches(one, caches)


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
    slots: dict[str, Array]  # int32[b, t], the slots that follow the newest one, by cache
    caches: dict[str, Cache]  # [b, l, t, g, k], their contents


def before_step(config: ModelConfig, state: StreamState) -> Undo:
    """The entry of the log for a step from `state`, which writes at most `turn_span` slots."""
    memory = state.memory
    slots = {name: next_slots(memory, name, config.turn_span) for name in memory.caches}

    def contents(leaf: Array, at: Array) -> Array:
        return jnp.take_along_axis(leaf, at[:, None, :, None, None], axis=2)

    caches = {
        name: Cache(contents(cache.k, slots[name]), contents(cache.v, slots[name]))
        for name, cache in memory.caches.items()
    }
    return Undo(without_caches(state), slots, caches)


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
        lambda leaf, old: leaf.at[row].set(row_of(old)), without_caches(state), undo.small
    )
    caches = {
        name: jax.tree.map(partial(back, slots=undo.slots[name]), cache, undo.caches[name])
        for name, cache in state.memory.caches.items()
    }
    return with_caches(small, caches)
