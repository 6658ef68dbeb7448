"""Sessions that are taken out of a batch, put into another one, and taken back in time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.model import session_rows, session_state, streaming
from interaction.model.session_state import StreamState
from interaction.types import Chunk
from tests.support import random_params

CONFIG = presets.tiny()
ROWS, TURNS = 3, 30  # more micro-turns than the rings have room for
RNG = np.random.default_rng(0)
PCM = (0.1 * RNG.standard_normal((TURNS, ROWS, CONFIG.audio.turn_samples))).astype(np.float32)
TEXT = RNG.integers(8, CONFIG.vocab, (TURNS, ROWS, CONFIG.text_slots)).astype(np.int32)
STEP = jax.jit(partial(streaming.step, CONFIG, random_params(CONFIG)))
BEFORE = jax.jit(partial(session_rows.before_step, CONFIG))


def chunk(turn: int, active: np.ndarray | None = None) -> Chunk:
    return Chunk(PCM[turn], TEXT[turn], active=np.ones(ROWS, bool) if active is None else active)


def same(a: object, b: object) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def talk() -> tuple[list[StreamState], list[session_rows.Undo]]:
    """The states of three sessions before each micro-turn, and the log's entries."""
    keys = session_state.session_keys(jnp.arange(ROWS))
    states, log = [session_state.init_state(CONFIG, keys)], []
    for turn in range(TURNS):
        log.append(BEFORE(states[-1]))
        states.append(STEP(states[-1], chunk(turn))[0])
    return states, log


def test_a_row_has_its_own_numbers_and_zeros_where_it_wrote_nothing(talk: tuple) -> None:
    states, _ = talk
    stale = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), states[2].memory.caches)
    caches = jax.tree.map(lambda a, b: jnp.where(a == 0, b, a), states[2].memory.caches, stale)
    young = session_state.with_caches(states[2], caches)
    same(session_rows.take_row(young, 1), jax.tree.map(lambda leaf: leaf[1:2], states[2]))
    same(session_rows.take_row(states[-1], 2), jax.tree.map(lambda leaf: leaf[2:], states[-1]))


def test_a_row_goes_on_in_another_batch(talk: tuple) -> None:
    states, _ = talk
    for turn in (3, 25):
        one = session_rows.take_row(states[turn], 2)
        moved = session_rows.put_row(states[1], 0, one)
        same(jax.tree.map(lambda leaf: leaf[1:], moved), jax.tree.map(lambda x: x[1:], states[1]))
        there = chunk(turn)._replace(audio=PCM[turn][[2, 0, 1]], text=TEXT[turn][[2, 0, 1]])
        same(
            session_rows.take_row(STEP(moved, there)[0], 0),
            session_rows.take_row(states[turn + 1], 2),
        )


def test_micro_turns_are_taken_back_to_the_bit(talk: tuple) -> None:
    states, log = talk
    for newest, oldest in ((TURNS, TURNS - 6), (4, 0)):
        state = states[newest]
        for turn in reversed(range(oldest, newest)):
            state = session_rows.take_back(state, log[turn], 1)
        same(session_rows.take_row(state, 1), session_rows.take_row(states[oldest], 1))
        for other in (0, 2):
            same(session_rows.take_row(state, other), session_rows.take_row(states[newest], other))
        again, _ = STEP(state, chunk(oldest))
        same(session_rows.take_row(again, 1), session_rows.take_row(states[oldest + 1], 1))
