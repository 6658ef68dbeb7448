"""The reasoner's functions: prefill in batches of any size, forks, training, and a mesh."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from interaction.background import reasoner
from interaction.background.reasoner import MicroTurns, ReasonerState
from interaction.config import PREFILL_TURNS
from interaction.distributed import sharding
from interaction.distributed.collectives import AXES
from interaction.model.heads import text_head
from interaction.model.sequence import encode
from interaction.model.turn_inputs import TurnInputs
from interaction.ops import dmel
from interaction.training import features, reasoning_loss
from interaction.types import Array, Special
from tests.support import SMALLEST, random_params

CONFIG = dataclasses.replace(SMALLEST, self_audio=False)
PARAMS = {name: random_params(CONFIG)[name] for name in ("backbone", "router_bias")}
TURNS, LENGTH = 38, 12  # more positions than the rings hold
ROWS = 2


@functools.cache
def record() -> dict[str, np.ndarray]:
    """Two random sessions; in some micro-turns text arrives, and some have a frame.

    The arrays are float64, int64 and bool, all [ROWS, TURNS, ...]: PCM, tokens and frames.
    """
    rng = np.random.default_rng(0)
    size, shape = CONFIG.frame_size, (ROWS, TURNS)
    arrived = rng.integers(Special.COUNT, CONFIG.vocab, (*shape, CONFIG.text_slots))
    user_transcript = rng.integers(Special.COUNT, CONFIG.vocab, (*shape, CONFIG.audio_positions))
    return {
        "audio": rng.integers(-9_000, 9_000, (*shape, CONFIG.audio.turn_samples)) / 32_768,
        "user_transcript": np.where(user_transcript % 3 == 0, user_transcript, Special.NONE),
        "text": rng.integers(0, CONFIG.vocab, shape),
        "arrived": np.where(rng.random(arrived.shape) < 0.7, Special.PAD, arrived),
        "frame": rng.random((*shape, size, size, 3)),
        "has_frame": rng.random(shape) < 0.4,
    }


REASONING = np.random.default_rng(1).integers(Special.COUNT, CONFIG.vocab, (ROWS, LENGTH))


def take(first: int, counts: list[int], video: bool = False) -> MicroTurns:
    """Micro-turns from `first` on; those past a row's count hold NaN and other unused values."""
    kinds = {"i": (jnp.int32, 7), "f": (jnp.float32, np.nan), "b": (bool, True)}
    rows = {}
    for name, leaf in record().items():
        dtype, unused = kinds[leaf.dtype.kind]
        rest = np.full_like(leaf[:, :PREFILL_TURNS], unused)
        for row, count in enumerate(counts):
            rest[row, :count] = leaf[row, first : first + count]
        rows[name] = jnp.asarray(rest, dtype)
    if not video:
        rows["frame"] = rows["has_frame"] = None
    return MicroTurns(**rows, count=jnp.asarray(counts, jnp.int32))


@functools.cache
def functions() -> reasoner.Functions:
    mesh = sharding.make_mesh({})
    return reasoner.make_reasoner(CONFIG, mesh, sharding.param_specs(PARAMS))


def prefilled(sizes: list[int], video: bool = False) -> ReasonerState:
    """The state after prefills of so many micro-turns each."""
    state, first = functions().init(ROWS), 0
    for size in sizes:
        state = functions().prefill(PARAMS, state, take(first, [size] * ROWS, video))
        first += size
    return state


READ = jax.jit(functools.partial(reasoner.read, CONFIG))


def logits(state: ReasonerState, sizes: list[int]) -> list[Array]:
    """Logits float32[ROWS, v] after each read of so many tokens of `REASONING`, padded alike."""
    found, first = [], 0
    for size in sizes:
        tokens = np.full((ROWS, max(sizes)), Special.PAD, np.int32)
        tokens[:, :size] = REASONING[:, first : first + size]
        state, now = READ(PARAMS, state, jnp.asarray(tokens))
        found.append(now)
        first += size
    return found


def same(a: ReasonerState, b: ReasonerState, atol: float) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.optimised
@pytest.mark.parametrize("video", [False, True])
def test_prefills_of_any_size_give_the_same_bits(video: bool) -> None:
    full = prefilled([5] * 7 + [3], video)
    assert full.clock.tolist() == [TURNS] * ROWS
    for sizes in ([1] * TURNS, [2, 0, 5, 3, 4, 1, *[5] * 4, 3]):
        same(prefilled(sizes, video), full, atol=0)


@pytest.mark.optimised
def test_sessions_of_a_batch_may_be_at_different_micro_turns() -> None:
    state = functions().init(ROWS)
    for counts, firsts in (([5, 2], [0, 0]), ([0, 3], [5, 2])):
        rows = [take(first, [count] * ROWS) for first, count in zip(firsts, counts, strict=True)]
        turns = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), *rows)
        before = jax.device_get(state)
        state = functions().prefill(PARAMS, state, turns)
    same(state, prefilled([5]), atol=0)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old[0], new[0])  # the row without new micro-turns


def _pairs() -> np.ndarray:
    """Each frame behind the newest one before it, float64[ROWS, TURNS, 2, size, size, 3]."""
    frames, has = record()["frame"], record()["has_frame"]
    pairs = np.stack([frames, frames], axis=2)
    for row in range(ROWS):
        seen = np.flatnonzero(has[row])
        for before, now in itertools.pairwise(seen):
            pairs[row, now, 0] = frames[row, before]
    return pairs


def _whole(turns: int, video: bool) -> Array:
    """Logits of a fork after so many micro-turns, by the function that training runs."""
    rows = {name: jnp.asarray(leaf) for name, leaf in record().items()}
    pcm = jnp.round(rows["audio"] * 32_768).astype(jnp.int16).reshape(ROWS, -1)
    user = features.stream_mel(pcm, CONFIG.audio.user, CONFIG.audio)
    slots = jnp.arange(TURNS)[:, None] * CONFIG.text_slots + jnp.arange(CONFIG.text_slots)
    batch = {
        "text": rows["text"].astype(jnp.int32),
        "arrived": rows["arrived"].astype(jnp.int32).reshape(ROWS, -1),
        "arrived_slot": jnp.tile(slots.reshape(1, -1), (ROWS, 1)),
        "prefilled": jnp.full(ROWS, turns),
        "reasoning": jnp.asarray(REASONING, jnp.int32),
    }
    inputs = TurnInputs(
        user=dmel.dmel_bins(user, CONFIG.audio),
        self_audio=None,
        self_audio_gain=jnp.zeros((ROWS, TURNS)),
        user_transcript=features.delayed(rows["user_transcript"].astype(jnp.int32), Special.NONE),
        last=features.delayed(batch["text"], Special.SILENT),
        frame=jnp.asarray(_pairs(), jnp.float32) if video else None,
        has_frame=rows["has_frame"] if video else None,
        exists=reasoning_loss.prefilled_turns(batch),
    )
    beside = reasoning_loss.reasoning_arrivals(CONFIG, batch)
    x = jax.jit(encode, static_argnums=0)(
        CONFIG, PARAMS["backbone"], PARAMS["router_bias"], inputs, beside
    )[1][:, -LENGTH:]
    return text_head(CONFIG, PARAMS["backbone"]["heads"], x)


@pytest.mark.optimised
@pytest.mark.parametrize(("turns", "video"), [(TURNS, False), (33, True)])
def test_forks_equal_training(turns: int, video: bool) -> None:
    """The logits of a fork are those of training, token by token and several at a time."""
    wanted = _whole(turns, video)
    state = prefilled([5] * (turns // 5) + [turns % 5], video)
    for sizes in ([1] * LENGTH, [5, 4, 3]):
        for end, now in zip(np.cumsum(sizes), logits(state, sizes), strict=True):
            np.testing.assert_allclose(now, wanted[:, end - 1], atol=2e-5)  # measured: 2.5e-6


def test_a_fork_does_not_change_the_record() -> None:
    made, state = functions(), prefilled([5, 5])
    before, tokens = jax.device_get(state), jnp.asarray(REASONING[:, :4], jnp.int32)
    fork, first = made.read(PARAMS, made.fork(state), tokens)
    _, again = made.read(PARAMS, made.fork(state), tokens)
    np.testing.assert_array_equal(first, again)
    same(state, before, atol=0)
    assert fork.clock.tolist() == [14] * ROWS
    assert np.any(fork.memory.caches["long"].k != before.memory.caches["long"].k)


def test_read_returns_the_likeliest_token() -> None:
    state = prefilled([5, 5])
    found = logits(state, [4])[0]
    _, token = functions().read(PARAMS, state, jnp.asarray(REASONING[:, :4], jnp.int32))
    np.testing.assert_array_equal(token, np.argmax(found, axis=-1))


def test_the_live_models_audio_is_not_read() -> None:
    """NaN in the table of self audio changes nothing."""
    table = PARAMS["backbone"]["audio_in"]["self_table"]
    spoiled = jax.tree.map(lambda leaf: leaf, PARAMS)
    spoiled["backbone"]["audio_in"]["self_table"] = jnp.full_like(table, jnp.nan)
    step = jax.jit(functools.partial(reasoner.prefill, CONFIG))
    state = functions().init(ROWS)
    same(*(step(params, state, take(0, [5, 5])) for params in (PARAMS, spoiled)), atol=0)


def test_more_than_the_rings_have_room_for_is_refused() -> None:
    state = functions().init(ROWS)
    turns = jax.tree.map(
        lambda x: jnp.concatenate([x, x], axis=1) if x.ndim > 1 else x, take(0, [5, 5])
    )
    with pytest.raises(ValueError, match="turns: got 10, wanted at most 5"):
        reasoner.prefill(CONFIG, PARAMS, state, turns)
    tokens = jnp.zeros((ROWS, 1 + PREFILL_TURNS * CONFIG.turn_span), jnp.int32)
    with pytest.raises(ValueError, match="tokens: got 41, wanted at most 40"):
        reasoner.read(CONFIG, PARAMS, state, tokens)


def test_each_function_is_compiled_once() -> None:
    made = reasoner.make_reasoner(
        CONFIG, sharding.make_mesh({}), sharding.param_specs(PARAMS), lambda params: seen(params)
    )
    traced = []

    def seen(params: dict) -> dict:
        traced.append(params)
        return params

    state = made.init(ROWS)
    for sizes in ([5, 2], [0, 0], [1, 5]):
        state = made.prefill(PARAMS, state, take(0, sizes))
    for token in (9, 10, Special.PAD):
        state, _ = made.read(PARAMS, state, np.full((ROWS, 1), token, np.int32))
    assert len(traced) == 2


@pytest.mark.parametrize("axes", [{"data": 2, "expert": 2, "tensor": 2}])
def test_a_mesh_equals_one_device(axes: dict[str, int]) -> None:
    """Four sessions and two heads over eight devices."""
    heads = dataclasses.replace(CONFIG.transformer, kv_heads=2, sliding_kv_heads=2)
    config = dataclasses.replace(CONFIG, transformer=heads)
    params = {name: random_params(config)[name] for name in ("backbone", "router_bias")}
    turns = jax.tree.map(lambda x: jnp.concatenate([x, x]), take(0, [5, 4]))
    found = []
    for shape in ({}, axes):
        devices = np.reshape(jax.devices()[: 8 if shape else 1], sharding.mesh_shape(shape))
        mesh = Mesh(devices, AXES)
        made = reasoner.make_reasoner(config, mesh, sharding.param_specs(params))
        placed = jax.device_put(params, sharding.shardings(mesh, params))
        rows = jax.device_put(
            (turns, np.tile(REASONING[:, :3], (2, 1)).astype(np.int32)),
            sharding.session_sharding(mesh),
        )
        state = made.prefill(placed, made.init(2 * ROWS), rows[0])
        state, token = made.read(placed, made.fork(state), rows[1])
        found.append(jax.device_get((state, token)))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    same(found[0][0], found[1][0], atol=1e-5)  # measured: 1.1e-6
