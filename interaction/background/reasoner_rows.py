"""The reasoner's functions for some rows of a state of many: taken out, run together, put back.

Every function is (params, state, (rows, given)) -> (state, result). `state` holds all rows and is
donated; `rows`, int32[b], are those that take part, and `given` has one entry for each of them. A
row number equal to the number of rows is padding: it computes something that is not put back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from interaction.background import reasoner
from interaction.background.reasoner import ReasonerState
from interaction.config import ModelConfig
from interaction.distributed.collectives import SESSIONS
from interaction.distributed.sharding import jit_step, place
from interaction.model.session_state import with_caches, without_caches
from interaction.modules.memory import next_slots
from interaction.types import Array, Params


class RowFunctions(NamedTuple):
    """The functions, jitted; each number of rows and each shape of inputs is compiled once."""

    init: Callable[[int], ReasonerState]  # rows -> state
    start: Callable[..., tuple]  # given (): the rows become new sessions; no result
    prefill: Callable[..., tuple]  # given MicroTurns; no result
    fork: Callable[..., tuple]  # given the rows to copy, int32[b]; no result
    read: Callable[..., tuple]  # given tokens int32[b, m]; results in the likeliest next, int32[b]


def take_rows(state: Any, rows: Array) -> Any:  # noqa: ANN401
    """Copies of the rows int32[b]; for padding, of some row."""
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), state)


def put_rows(state: ReasonerState, rows: Array, some: ReasonerState) -> ReasonerState:
    """The state with the sessions `some` in the rows int32[b]; those of padding are dropped."""
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new, mode="drop"), state, some)


def put_written(state: ReasonerState, rows: Array, some: ReasonerState, new: int) -> ReasonerState:
    """Like `put_rows`, for rows int32[b] that have written at most `new` slots since then.

    Other slots of the caches are not copied back.
    """
    before = take_rows(state.memory._replace(caches={}), rows)

    def put(slots: Array, leaf: Array, one: Array) -> Array:
        written = jnp.take_along_axis(one, slots[:, None, :, None, None], axis=2)
        # Index arrays on both sides of a slice put their axes first.
        return leaf.at[rows[:, None], :, slots].set(jnp.moveaxis(written, 1, 2), mode="drop")

    small = put_rows(without_caches(state), rows, without_caches(some))
    caches = {}
    for name, cache in state.memory.caches.items():
        slots = next_slots(before._replace(caches=some.memory.caches), name, new)
        caches[name] = jax.tree.map(partial(put, slots), cache, some.memory.caches[name])
    return with_caches(small, caches)


def make_row_functions(
    config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    specs: Any,  # noqa: ANN401
    unpack: Callable[[Any], Params],
) -> RowFunctions:
    """Makes the functions; see `reasoner.make_reasoner` for the arguments.

    The mesh does not split sessions.
    """
    sessions, states = PartitionSpec(SESSIONS), reasoner.state_specs(config)

    def start(params: Any, state: ReasonerState, given: tuple) -> tuple:  # noqa: ANN401
        rows, _ = given
        return put_rows(state, rows, reasoner.init_state(config, rows.shape[0])), ()

    def prefill(params: Any, state: ReasonerState, given: tuple) -> tuple:  # noqa: ANN401
        rows, turns = given
        some = reasoner.prefill(config, unpack(params), take_rows(state, rows), turns)
        new = turns.text.shape[1] * config.turn_span
        return put_written(state, rows, some, new), ()

    def fork(params: Any, state: ReasonerState, given: tuple) -> tuple:  # noqa: ANN401
        rows, sources = given
        return put_rows(state, rows, take_rows(state, sources)), ()

    def read(params: Any, state: ReasonerState, given: tuple) -> tuple:  # noqa: ANN401
        rows, tokens = given
        some, logits = reasoner.read(config, unpack(params), take_rows(state, rows), tokens)
        state = put_written(state, rows, some, tokens.shape[1])
        return state, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def step(body: Callable) -> Callable:
        return jit_step(body, mesh, (specs, states, sessions), (states, sessions))

    return RowFunctions(
        init=jax.jit(
            partial(reasoner.init_state, config),
            static_argnums=0,
            out_shardings=place(mesh, states),
        ),
        start=step(start),
        prefill=step(prefill),
        fork=step(fork),
        read=step(read),
    )
