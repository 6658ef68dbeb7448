"""A reset puts back every leaf of the state, against a fresh state written down by hand."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest

from interaction.model import session_state, streaming
from interaction.model.session_state import StreamState
from interaction.model.turn_inputs import LastFrame
from interaction.modules.memory import Cache, Memory, Tails
from interaction.modules.vocoder import VocoderState
from interaction.ops.source_filter import SourceState
from interaction.types import Chunk, Special
from tests.support import FINE, random_params

TINY = FINE
# Without a lag of the vocoder its gate opens with the first sample, so that what the vocoder holds
# of an old session would be heard.
CONFIG = dataclasses.replace(TINY, vocoder=dataclasses.replace(TINY.vocoder, delay_frames=0))
ROWS, OLD, NEW = 2, 0, 1  # row OLD goes on, row NEW is reset
RESET, AGAIN = np.array([False, True]), np.array([8, 9], np.int32)  # rows and their new seeds
RNG = np.random.default_rng(0)
PCM = (0.1 * RNG.standard_normal((8, ROWS, 3_200))).astype(np.float32)
AUDIO_POSITIONS = 3  # two of audio and one of text out: what a chunk of audio alone writes
SEEDS = np.array([[0, 5], [0, 6]], np.uint32)


def fresh_by_hand(keys: np.ndarray) -> StreamState:
    """Sessions of the tiny preset before their first micro-turn: silence on both sides."""

    def rows(value: float, dtype: type, *shape: int) -> np.ndarray:
        return np.full((ROWS, *shape), value, dtype)

    def cache(capacity: int) -> Cache:  # two layers of each kind, one key head of 16
        return Cache(*(rows(0, np.float32, 2, capacity, 1, 16) for _ in range(2)))

    def tails() -> Tails:  # three positions of two layers
        widths = 16, 16, 32, 32
        return Tails(*(rows(0, np.float32, 2, 3, width) for width in widths))

    cepstra = rows(0, np.float32, 2, 80)
    cepstra[..., 0] = -18.0  # natural logarithm of the gain of a filter that is shut
    return StreamState(
        key=keys,
        clock=rows(0, np.uint32),
        memory=Memory(
            clock=rows(0, np.int32),
            tails={"sliding": tails(), "long": tails()},
            # Whole blocks of 64 keys for windows of 20 and 40 keys, 6 - 1 new ones, and one block.
            caches={"sliding": cache(128), "long": cache(128), "first": cache(16)},
        ),
        frame=LastFrame(rows(0, np.float32, 40, 40, 3), rows(0, np.bool_)),
        audio_tail=rows(0, np.float32, 800 - 400),
        user_transcript=rows(Special.NONE, np.int32, 2),
        text=rows(Special.SILENT, np.int32),
        control=rows(0, np.bool_),
        tokens=rows(Special.SILENT, np.int32, 12),
        mel=rows(-5.0, np.float32, 16, 80),
        vocoder=VocoderState(
            mel=rows(0, np.float32, 2, 80),
            blocks=rows(0, np.float32, 1, 6, 16),
            source=SourceState(
                pitch=rows(170.0, np.float32),
                phase=rows(0, np.uint32),
                clock=rows(0, np.int32),
                cepstra=cepstra,
                tail=rows(0, np.float32, 512 - 200),
            ),
        ),
    )


def name_of(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


# What two micro-turns of audio alone, early in a session, do not read.
UNREAD = ("memory.caches.first.k", "memory.caches.first.v", "frame.frame", "frame.seen")
LEAVES = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh_by_hand(SEEDS))]


def perturbed(state: StreamState, names: list[str]) -> StreamState:
    """Other numbers of an unlikely size in the named leaves of all rows."""
    rng = np.random.default_rng(1)

    def one(path: tuple, leaf: np.ndarray) -> np.ndarray:
        if name_of(path) not in names:
            return leaf
        if leaf.dtype == bool:
            return ~leaf
        if leaf.dtype == np.uint32:
            return rng.integers(1, 2**32, leaf.shape, np.uint32)
        if leaf.dtype == np.int32:
            return rng.integers(Special.COUNT, CONFIG.vocab, leaf.shape, np.int32)
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return leaf + 3 * noise + np.float32(1)

    return jax.tree_util.tree_map_with_path(one, state)


@pytest.fixture(scope="module")
def step() -> Callable:
    run = jax.jit(functools.partial(streaming.step, CONFIG, random_params(CONFIG)))

    def two_turns(state: StreamState, first: int, reset: np.ndarray) -> tuple:
        state, reply = run(state, Chunk(audio=PCM[first], reset=reset, seed=AGAIN))
        nobody = np.zeros(ROWS, bool)
        later, next_reply = run(state, Chunk(PCM[first + 1], reset=nobody, seed=AGAIN))
        return jax.device_get((state, reply, later, next_reply))

    return two_turns


@pytest.fixture(scope="module")
def both(step: Callable) -> StreamState:
    """Row OLD has talked for four micro-turns, row NEW is fresh: a leaf is perturbed in both."""
    nobody, fresh = np.zeros(ROWS, bool), fresh_by_hand(SEEDS)
    old = fresh
    for first in (0, 2):
        *_, old, reply = step(old, first, nobody)
    assert reply.text[OLD] >= Special.COUNT and old.memory.clock[OLD] == 4 * AUDIO_POSITIONS
    return jax.tree.map(lambda a, b: np.stack([a[OLD], b[NEW]]), old, fresh)


def row(tree: object, index: int) -> dict[str, np.ndarray]:
    """Leaves of one row by name, of caches the slots that a fresh row has written by then."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = name_of(path)
        written = AUDIO_POSITIONS * (1 if name.startswith("0.") else 2)
        found[name] = leaf[index][:, :written] if "caches" in name else leaf[index]
    return found


def test_a_fresh_state_is_silence_on_both_sides() -> None:
    state = session_state.init_state(CONFIG, session_state.session_keys(np.array([5, 6])))
    wanted = fresh_by_hand(SEEDS)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for name, leaf, by_hand in zip(
        LEAVES, jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert leaf.dtype == by_hand.dtype, name
        np.testing.assert_array_equal(leaf, by_hand, err_msg=name)


@pytest.mark.parametrize("leaf", [*LEAVES, "all"])
def test_a_reset_puts_back(step: Callable, both: StreamState, leaf: str) -> None:
    names = LEAVES if leaf == "all" else [leaf]
    spoilt = perturbed(both, names)
    found = step(spoilt, 4, RESET)
    wanted = step(fresh_by_hand(np.array([[0, 8], [0, 9]], np.uint32)), 4, np.zeros(ROWS, bool))
    assert np.all(wanted[1].text[NEW] >= Special.COUNT), "a word, or `control` would not matter"
    for name, value in row(wanted, NEW).items():
        np.testing.assert_array_equal(row(found, NEW)[name], value, err_msg=name)
    if leaf in UNREAD:
        return
    # Without a reset the perturbed leaf changes more than itself, so the test would see it.
    calm, changed = row(step(both, 4, RESET), OLD), row(found, OLD)
    differs = {name for name, value in calm.items() if np.any(changed[name] != value)}
    assert differs - {f"{place}.{leaf}" for place in (0, 2)}, differs  # states 0 and 2 hold it
