"""The step: masks at the boundary, constant memory, replay, compilation, and bad input."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interaction
from interaction import presets
from interaction.data.tokenizer import load_tokenizer
from interaction.engine.live_model import InteractionModel
from interaction.model import streaming
from interaction.model.session_rows import take_row
from interaction.modules.memory import LONG, SLIDING
from interaction.types import Chunk, Special
from tests.support import random_params

pytestmark = pytest.mark.optimised

CONFIG = presets.tiny()
ROWS = 3
SAMPLES = CONFIG.audio.turn_samples
RNG = np.random.default_rng(0)
PCM = (0.1 * RNG.standard_normal((20, ROWS, SAMPLES))).astype(np.float32)
ALL, NOBODY = np.ones(ROWS, bool), np.zeros(ROWS, bool)


@pytest.fixture(scope="module")
def model() -> InteractionModel:
    return InteractionModel(CONFIG, random_params(CONFIG), load_tokenizer())


SEEDS = np.arange(ROWS, dtype=np.int32)


def chunk(
    turn: int, active: np.ndarray = ALL, reset: np.ndarray = NOBODY, seed: np.ndarray = SEEDS
) -> Chunk:
    """A chunk of the one compiled variant that all steps of this file use."""
    return Chunk(audio=PCM[turn], active=active, reset=reset, seed=seed)


def run(model: InteractionModel, chunks: list[Chunk], seed: object = 0) -> tuple:
    state, replies = model.init_state(ROWS, seed), []
    for one in chunks:
        state, reply = model.step(state, one)
        replies.append(jax.device_get(reply))
    return jax.device_get(state), replies


def equal(a: object, b: object, rows: object = slice(None)) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(x[rows], y[rows], err_msg=jax.tree_util.keystr(path))


def test_same_inputs_and_seed_replay_to_the_bit(model: InteractionModel) -> None:
    chunks = [chunk(i) for i in range(6)]
    equal(run(model, chunks), run(model, chunks))
    first, second = run(model, chunks, seed=0)[1], run(model, chunks, seed=7)[1]
    spoken = any(np.any(a.text != Special.SILENT) for a in first)
    assert spoken, "the random model must speak for the seeds to matter"
    assert any(np.any(a.audio != b.audio) for a, b in zip(first, second, strict=True))


def test_inactive_row_keeps_its_state_to_the_bit(model: InteractionModel) -> None:
    asleep = np.array([True, False, True])
    before, _ = run(model, [chunk(0), chunk(1)])
    after, replies = run(model, [chunk(0), chunk(1), chunk(2, active=asleep)])
    everyone, _ = run(model, [chunk(0), chunk(1), chunk(2)])
    equal(before, after, rows=1)
    equal(everyone, after, rows=[0, 2])
    assert not np.any(replies[-1].audio[1]) and replies[-1].text[1] == Special.SILENT
    assert np.any(after.audio_tail[0] != before.audio_tail[0])


def test_inactive_row_is_not_reset_either(model: InteractionModel) -> None:
    asleep = np.array([True, False, True])
    before, _ = run(model, [chunk(0)])
    after, _ = run(model, [chunk(0), chunk(1, active=asleep, reset=~asleep)])
    equal(before, after, rows=1)


def test_caller_may_refill_its_buffer(model: InteractionModel) -> None:
    wanted = run(model, [chunk(0)])[1][0].audio
    for _ in range(200):  # a transfer loses this race about once in fifty times
        pcm = PCM[0].copy()
        state = model.init_state(ROWS, 0)
        _, reply = model.step(state, chunk(0)._replace(audio=pcm))
        pcm[:] = 0.5
        np.testing.assert_array_equal(reply.audio, wanted)


def test_silence_does_not_depend_on_who_else_speaks(model: InteractionModel) -> None:
    """Row 1 is silent, speaks one word, is silent again; row 0 always speaks, or never does."""
    word, silent = Special.COUNT + 3, int(Special.SILENT)
    keys = jax.random.split(jax.random.key(0), 2)
    everyone, hidden = jnp.ones(2, bool), jnp.ones((2, model.config.transformer.dim))
    speak = jax.jit(functools.partial(streaming.speak, model.config))
    ends, sounds = [], []
    for neighbour in (word, silent):
        state, played = model.init_state(2, 0), []
        for token in (silent, word, silent, silent):
            tokens = jnp.array([neighbour, token], jnp.int32)
            state, pcm = speak(model.params, state, hidden, tokens, keys, everyone)
            played.append(np.asarray(pcm[1]))
        equal(model.init_state(2, 0).vocoder, state.vocoder, rows=1)
        ends.append(jax.device_get(state))
        sounds.append(np.stack(played))
    equal(*ends, rows=1)
    np.testing.assert_array_equal(*sounds)
    lag = model.config.vocoder.delay_frames * model.config.audio.speech.hop
    assert np.any(sounds[0][1]) and np.any(sounds[0][2, :lag])
    assert not np.any(sounds[0][[0, 3]]) and not np.any(sounds[0][2, lag:])


def test_reset_row_equals_a_fresh_session(model: InteractionModel) -> None:
    again, seeds = np.array([False, True, False]), np.full(ROWS, 9, np.int32)
    later, replies = run(model, [chunk(3), chunk(4), chunk(0, reset=again, seed=seeds), chunk(1)])
    fresh, first = run(model, [chunk(0), chunk(1)], seed=[0, 9, 2])
    equal(take_row(later, 1), take_row(fresh, 1))  # its slots still hold the session before
    equal(replies[2:], first, rows=1)
    untouched, _ = run(model, [chunk(3), chunk(4), chunk(0), chunk(1)])
    equal(later, untouched, rows=[0, 2])


def test_a_reset_does_not_rewrite_caches(model: InteractionModel) -> None:
    """Only the scatter of new positions may return an array as large as a cache."""
    state = model.init_state(ROWS, 0)
    jaxpr = jax.make_jaxpr(functools.partial(streaming.step, CONFIG, random_params(CONFIG)))
    found = str(jaxpr(state, chunk(0)))
    for cache in jax.tree.leaves(state.memory.caches):
        shape = f"f32[{','.join(map(str, cache.shape))}]"
        assert shape in found
        assert not re.search(rf"{re.escape(shape)} = select_n", found)


def test_row_does_not_depend_on_its_place_or_neighbours(model: InteractionModel) -> None:
    order = np.array([2, 0, 1])
    straight, replies = run(model, [chunk(i) for i in range(5)], seed=[5, 6, 7])
    turned = [chunk(i)._replace(audio=PCM[i][order]) for i in range(5)]
    other, moved = run(model, turned, seed=[7, 5, 6])
    equal(jax.tree.map(lambda x: x[order], straight), other)
    for a, b in zip(replies, moved, strict=True):
        equal(jax.tree.map(lambda x: x[order], a), b)
    gains = np.array([[1], [3], [0]], np.float32)
    loud = [chunk(i)._replace(audio=PCM[i] * gains) for i in range(5)]
    equal(run(model, loud, seed=[5, 6, 7])[0], straight, rows=0)


def test_bad_row_is_refused_alone(model: InteractionModel) -> None:
    for bad in (np.nan, np.inf, 20_000.0):
        broken = PCM[2].copy()
        broken[1, 17] = bad
        before, _ = run(model, [chunk(0), chunk(1)])
        after, replies = run(model, [chunk(0), chunk(1), chunk(2)._replace(audio=broken)])
        good, _ = run(model, [chunk(0), chunk(1), chunk(2)])
        np.testing.assert_array_equal(replies[-1].refused, [False, True, False])
        equal(after, before, rows=1)
        equal(after, good, rows=[0, 2])


def test_one_compilation_no_transfer_and_everything_donated(model: InteractionModel) -> None:
    state = model.init_state(ROWS, 0)
    chunks = [jax.device_put(chunk(i)) for i in range(4)]
    lowered = model._step.lower(model._packed, state, chunks[0]).as_text()
    assert lowered.count("tf.aliasing_output") == len(jax.tree.leaves(state))
    first = state
    state, _ = model.step(state, chunk(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    events = []

    def listener(name: str, *_: object, **__: object) -> None:
        events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    with jax.transfer_guard("disallow"):
        for one in chunks:
            state, _ = model._step(model._packed, state, one)
    for turn in range(4):
        state, _ = model.step(state, chunk(turn))
    compiled = [name for name in events if "compile" in name]
    assert not compiled, "a later step of the same shape compiled again"
    model._init.lower(jnp.arange(5)).compile()
    assert [name for name in events if "compile" in name], "the listener sees compilations"
    jax.monitoring.unregister_event_duration_listener(listener)
    kinds = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]
    fresh = model.init_state(ROWS, 0)
    assert kinds == [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(fresh)]


def test_memory_is_constant_and_the_index_steps_back(model: InteractionModel) -> None:
    """A step whose index steps back gives the result of one with a small index and full rings."""
    state, _ = run(model, [chunk(i % 20) for i in range(60)])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    slots = [state.memory.caches[kind].k.shape[2] for kind in (SLIDING, LONG)]
    index, lap = state.memory.clock, int(np.lcm.reduce(slots))
    assert np.all(index > max(slots)), "the rings went round"
    late = index + lap * (((1 << 30) - int(index[0])) // lap + 1)  # the next step is beyond 2**30
    old = state._replace(memory=state.memory._replace(clock=late))
    young_end, young = model.step(jax.device_put(state), chunk(3))
    old_end, aged = model.step(jax.device_put(old), chunk(3))
    assert np.all(old_end.memory.clock < 1 << 30)
    equal(young, aged)
    ends = [one._replace(memory=one.memory._replace(clock=index)) for one in (young_end, old_end)]
    equal(*ends)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(young_end)) == size


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("audio", PCM[0].astype(np.float64), "float64"),
        ("audio", PCM[0][:, :-1], "3199"),
        ("audio", PCM[0][:1], "3200"),
        ("audio", np.full_like(PCM[0], np.nan), "NaN"),
        ("text", np.zeros((ROWS, 9), np.int32), "text_slots|\\[3, 2\\]"),
        ("frame", np.zeros((ROWS, 41, 40, 3), np.float32), "41"),
        ("has_frame", ALL, "both or neither"),
        ("active", np.ones(ROWS, np.int32), "bool"),
    ],
)
def test_bad_chunk_is_named(
    model: InteractionModel, field: str, value: np.ndarray, says: str
) -> None:
    state = model.init_state(ROWS, 0)
    with pytest.raises(ValueError, match=says) as error:
        model.step(state, chunk(0)._replace(**{field: value}))
    assert f"chunk.{field}" in str(error.value)
    assert not jax.tree.leaves(state)[0].is_deleted(), "the state is still good"


def test_a_state_that_was_donated_is_named(model: InteractionModel) -> None:
    first = model.init_state(ROWS, 0)
    row = model.take_row(first, 1)
    second, _ = model.step(first, chunk(0))
    for use in (
        lambda: model.step(first, chunk(1)),
        lambda: model.take_row(first, 0),
        lambda: model.put_row(first, 0, row),
    ):
        with pytest.raises(ValueError, match="state: got one that was donated to an earlier call"):
            use()
    model.step(second, chunk(1))


def test_text_longer_than_its_slots_is_refused(model: InteractionModel) -> None:
    assert model.encode("hello").shape == (CONFIG.text_slots,)
    with pytest.raises(ValueError, match="text_slots"):
        model.encode("one two three four five")


def test_unknown_model_is_refused() -> None:
    for name in ("no-such-model", ""):
        with pytest.raises(ValueError, match=f"name: got '{name}'"):
            interaction.load(name)


def test_wrong_seeds_are_refused(model: InteractionModel) -> None:
    with pytest.raises(ValueError, match="seed"):
        model.init_state(ROWS, [1, 2])
    for seed in (2**31, 2**31 - 1, -(2**31) - 1, 2**70, 0.5, None, "a", [0, 1, 2**31]):
        with pytest.raises(ValueError, match=re.escape(f"seed: got {seed!r}, wanted integers")):
            model.init_state(ROWS, seed)
    equal(model.init_state(ROWS, np.uint64(3)), model.init_state(ROWS, [3, 4, 5]))
    with pytest.raises(ValueError, match="sessions"):
        model.init_state(0)


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "1.0"'])
def test_damaged_tokenizer_is_refused(tmp_path: pathlib.Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(path)
