"""Random keys of a session against Threefry in plain integers (Salmon et al., 2011).

A draw's key is fold_in(fold_in(session key, micro-turn), use). The key of a seed is (0, seed), and
fold_in(key, data) is the block that Threefry-2x32 makes of the counter (0, data) under the key.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.model import session_state, streaming
from interaction.model.positions import Positions
from interaction.model.session_state import StreamState
from interaction.modules.memory import Memory
from interaction.modules.vocoder import VocoderState
from interaction.ops import sampling
from interaction.types import Array, Chunk, Special
from tests.support import random_params

CONFIG = dataclasses.replace(presets.tiny(), text_temperature=0.7)
WORD = 2**32 - 1
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
SEEDS = (0, 1, 2**31 - 1)
USES = {"text": 0, "flow": 1}
Words = tuple[int, int]


def threefry(key: Words, counter: Words) -> Words:
    """Threefry-2x32 with 20 rounds."""
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    a, b = ((x + k) & WORD for x, k in zip(counter, key, strict=True))
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            a = (a + b) & WORD
            b = ((b << turn | b >> (32 - turn)) & WORD) ^ a
        a = (a + schedule[(group + 1) % 3]) & WORD
        b = (b + schedule[(group + 2) % 3] + group + 1) & WORD
    return a, b


def reference_key(seed: int, turn: int, use: str) -> Words:
    session = (0, seed & WORD)
    return threefry(threefry(session, (0, turn & WORD)), (0, USES[use]))


def typed_key(words: Words) -> Array:
    return jax.random.wrap_key_data(jnp.array(words, jnp.uint32))


@pytest.mark.parametrize(
    ("key", "counter", "block"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((WORD, WORD), (WORD, WORD), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_reference_gives_the_known_answers(key: Words, counter: Words, block: Words) -> None:
    """Vectors that its authors publish with Random123."""
    assert threefry(key, counter) == block


def test_a_session_s_key_is_its_seed() -> None:
    seeds = np.array([0, 7, 2**31 - 1, -1, -(2**31)], np.int32)
    wanted = [[0, int(seed) & WORD] for seed in seeds]
    np.testing.assert_array_equal(session_state.session_keys(jnp.asarray(seeds)), wanted)


def test_no_draws_share_a_key() -> None:
    """Three sessions, micro-turns at the start and around the clock's wrap, both uses."""
    turns = [*range(50), 2**31, *range(2**32 - 3, 2**32)]
    seeds, clock = (grid.ravel() for grid in np.meshgrid(SEEDS, turns))
    keys = jax.vmap(jax.random.wrap_key_data)(session_state.session_keys(seeds.astype(np.int32)))
    found = []
    for use, number in (("text", sampling.TEXT), ("flow", sampling.FLOW)):
        got = sampling.turn_keys(keys, jnp.asarray(clock.astype(np.uint32)), number)
        words = np.asarray(jax.random.key_data(got))
        wanted = [
            reference_key(int(seed), int(turn), use)
            for seed, turn in zip(seeds, clock, strict=True)
        ]
        np.testing.assert_array_equal(words, wanted)
        found += [tuple(key) for key in words.tolist()]
    assert len(set(found)) == len(found) == 3 * 54 * 2


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """Of the text stream; words alone can be drawn."""
    values = 2 * np.random.default_rng(0).standard_normal(CONFIG.vocab)
    values[: Special.COUNT] = -1e9
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def step(logits: np.ndarray) -> Callable:
    """The step with text logits that are known, and a flow head that hands on its noise.

    Its layers and its vocoder, which draw nothing, are left out: they are what compiles long.
    """
    params = random_params(CONFIG)

    def apply_heads(config: object, params: object, tail: Array) -> tuple[Array, Array, Array]:
        b, n, _, d = tail.shape
        transcript = jnp.zeros((b, n, CONFIG.audio_positions, CONFIG.vocab))
        return jnp.broadcast_to(logits, (b, n, CONFIG.vocab)), transcript, jnp.zeros((b, n, d))

    def run_cached(config: object, params: object, positions: Positions, memory: Memory) -> tuple:
        return positions.x, memory, None

    def vocoder_step(params: object, state: VocoderState, *rest: object) -> tuple:
        return state, jnp.zeros((len(state.mel), CONFIG.audio.turn_samples))

    def run(state: StreamState, chunk: Chunk) -> tuple:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "run_cached", run_cached)
            patch.setattr(streaming, "apply_heads", apply_heads)
            patch.setattr(streaming, "generate_mel", lambda *arguments: arguments[-1])
            patch.setattr(streaming.vocoder, "vocoder_step", vocoder_step)
            return streaming.step(CONFIG, params, state, chunk)

    return jax.jit(run)


def test_a_step_draws_text_and_speech_from_their_own_keys(
    step: Callable, logits: np.ndarray
) -> None:
    """The clock is each session's own: one wraps, one sleeps for a turn, one is reset."""
    seeds = (0, 7, -3)
    turns = [
        (2**32 - 2, 0, 0),
        (2**32 - 1, 1, 1),
        (0, None, 2),
        (1, 2, 0),
        (2, 3, 1),
    ]
    state = session_state.init_state(
        CONFIG, session_state.session_keys(jnp.array(seeds, jnp.int32))
    )
    state = state._replace(clock=jnp.array(turns[0], jnp.uint32))
    shape = (CONFIG.audio.speech_frames, CONFIG.audio.mels)
    drawn = set()
    for index, clock in enumerate(turns):
        chunk = Chunk(
            audio=np.zeros((3, CONFIG.audio.turn_samples), np.float32),
            active=np.array([True, clock[1] is not None, True]),
            reset=np.array([False, False, index == 3]),
            seed=np.array(seeds, np.int32),
        )
        state, reply = step(state, chunk)
        for row, turn in enumerate(clock):
            if turn is None:
                continue
            text, flow = (typed_key(reference_key(seeds[row], turn, use)) for use in USES)
            token = jax.random.categorical(text, jnp.asarray(logits) / 0.7)
            assert int(reply.text[row]) == int(token), (index, row)
            drawn.add(int(token))
            noise = jax.random.normal(flow, shape)
            # Largest difference seen: 0.
            np.testing.assert_allclose(state.mel[row], noise, atol=1e-6, err_msg=f"{index} {row}")
    assert len(drawn) > 8, "tokens differ, or any key would do"
