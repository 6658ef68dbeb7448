"""Positions of micro-turns: who stands where on the clock, by hand and against NumPy."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import ModelConfig
from interaction.distributed.sharding import cast_params
from interaction.model.positions import Positions, embed, embed_arrivals, take_positions
from interaction.model.turn_inputs import Arrivals, TurnInputs
from interaction.modules.audio_in import AudioIn
from interaction.modules.text import TextIn
from interaction.presets import PRESETS
from interaction.types import Special
from tests.support import FINE, random_params

TINY = FINE  # two text slots, one patch, two audio positions, one of text out: a span of 6
WIDE = dataclasses.replace(TINY, text_slots=3, patches=4, audio_positions=4)  # a span of 12
PAD = Special.PAD
# Where a kind stands in a micro-turn, by variant: (text in, frame).
PLACES = {
    "tiny": {
        (False, False): [3, 4, 5],
        (True, False): [0, 1, 3, 4, 5],
        (False, True): [2, 3, 4, 5],
        (True, True): [0, 1, 2, 3, 4, 5],
    },
    "wide": {
        (False, False): [7, 8, 9, 10, 11],
        (True, False): [0, 1, 2, 7, 8, 9, 10, 11],
        (False, True): [3, 4, 5, 6, 7, 8, 9, 10, 11],
        (True, True): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    },
}
CONFIGS, SPANS = {"tiny": TINY, "wide": WIDE}, {"tiny": 6, "wide": 12}
VARIANTS = list(PLACES["tiny"])


def make_inputs(config: ModelConfig, sessions: int = 2, turns: int = 3) -> TurnInputs:
    """Micro-turns with everything in them: no empty slot, a frame in each."""
    rng = np.random.default_rng(0)
    shape = (sessions, turns)
    frames = (*shape, config.audio.user_frames, config.audio.mels)
    size = config.frame_size

    def tokens(*more: int) -> np.ndarray:
        return rng.integers(Special.COUNT, config.vocab, (*shape, *more), np.int32)

    return TurnInputs(
        user=rng.integers(0, 16, frames, np.int32),
        self_audio=rng.integers(0, 16, frames, np.int32),
        self_audio_gain=np.ones(shape, np.float32),
        user_transcript=tokens(config.audio_positions),
        last=tokens(),
        text=tokens(config.text_slots),
        frame=rng.random((*shape, 2, size, size, 3), np.float32),
        has_frame=np.ones(shape, bool),
    )


def as_variant(inputs: TurnInputs, variant: tuple[bool, bool]) -> TurnInputs:
    with_text, with_frame = variant
    inputs = inputs if with_text else inputs._replace(text=None)
    return inputs if with_frame else inputs._replace(frame=None, has_frame=None)


@functools.cache
def embedding(config: ModelConfig) -> Callable:
    backbone = random_params(config)["backbone"]
    return jax.jit(lambda inputs, clock: embed(config, backbone, inputs, clock))


def run(config: ModelConfig, inputs: TurnInputs, clock: list[int]) -> Positions:
    return jax.device_get(embedding(config)(inputs, np.array(clock, np.uint32)))


def places(config: ModelConfig, inputs: TurnInputs, clock: list[int]) -> tuple:
    """Validity and time alone, for which nothing of the embeddings is compiled."""
    backbone = random_params(config)["backbone"]
    lay_out = jax.jit(lambda *given: embed(config, backbone, *given)[1:3])
    return jax.device_get(lay_out(inputs, np.array(clock, np.uint32)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_kind_stands_at_its_place(name: str, variant: tuple[bool, bool]) -> None:
    """A kind that is absent takes no positions, and the others stay where they are."""
    config, span = CONFIGS[name], SPANS[name]
    valid, time = places(config, as_variant(make_inputs(config), variant), [0, 70])
    by_hand = [
        [first + turn * span + place for turn in range(3) for place in PLACES[name][variant]]
        for first in (0, 70 * span)
    ]
    np.testing.assert_array_equal(time, by_hand)
    assert time.dtype == np.uint32 and valid.all()


def test_the_clock_wraps_inside_a_micro_turn_and_between_two() -> None:
    """Number 715,827,882 of a span of 6 begins 4 positions before 2**32; the last one begins 6."""
    _, time = places(TINY, make_inputs(TINY, turns=2), [715_827_882, 2**32 - 1])
    last = 2**32 - 1
    np.testing.assert_array_equal(
        time,
        [
            [last - 3, last - 2, last - 1, last, 0, 1, 2, 3, 4, 5, 6, 7],
            [last - 5, last - 4, last - 3, last - 2, last - 1, last, 0, 1, 2, 3, 4, 5],
        ],
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_kinds_never_overlap(preset: str) -> None:
    """A span holds exactly what may stand in it, so no two positions share a time."""
    config = PRESETS[preset]()
    kinds = [config.text_slots, config.patches, config.audio_positions, 1]
    assert config.turn_span == sum(kinds)


CHANGES = {  # what is changed in the last of three micro-turns of WIDE, and where it is seen
    "text, slot 0": ("text", (0,), [0]),
    "text, slot 2": ("text", (2,), [2]),
    "frame, top left": ("frame", (1, slice(0, 40), slice(0, 40)), [3]),
    "frame, top right": ("frame", (1, slice(0, 40), slice(40, 80)), [4]),
    "frame before, bottom left": ("frame", (0, slice(40, 80), slice(0, 40)), [5]),
    "user, frame 0": ("user", (0,), [7]),
    "user, frame 1": ("user", (1,), [7]),
    "user, frame 2": ("user", (2,), [8]),
    "user, frame 7": ("user", (7,), [10]),
    "self audio, frame 3": ("self_audio", (3,), [8]),
    "self audio, frame 4": ("self_audio", (4,), [9]),
    "gain": ("self_audio_gain", (), [7, 8, 9, 10]),
    "transcript, place 0": ("user_transcript", (0,), [7]),
    "transcript, place 3": ("user_transcript", (3,), [10]),
    "last token": ("last", (), [11]),
}


@pytest.fixture(scope="module")
def calm() -> tuple[TurnInputs, Positions]:
    inputs = make_inputs(WIDE)
    return inputs, run(WIDE, inputs, [0, 0])


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_read_stands_where_it_belongs(
    calm: tuple[TurnInputs, Positions], what: str
) -> None:
    """A change of one input moves the positions of its kind in its micro-turn, and no other."""
    inputs, before = calm
    field, place, seen = CHANGES[what]
    leaf = getattr(inputs, field).copy()
    at = (0, 2, *place)
    leaf[at] = (leaf[at] + 1) % 16 if field in ("user", "self_audio") else 1 - leaf[at]
    leaf[at] = np.abs(leaf[at])  # of a token t, t - 1
    after = run(WIDE, inputs._replace(**{field: leaf}), [0, 0])
    moved = np.argwhere(np.any(before.x != after.x, axis=-1))
    assert moved.tolist() == [[0, 2 * 12 + position] for position in seen]


def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def test_text_is_its_rows_of_the_table() -> None:
    inputs = make_inputs(TINY)
    found = run(TINY, inputs, [0, 0])
    x = found.x.reshape(2, 3, 6, -1)
    text_in = {k: np.asarray(v) for k, v in random_params(TINY)["backbone"]["text_in"].items()}
    rows = norm(text_in["table"], text_in["norm"])
    np.testing.assert_allclose(x[:, :, 0], rows[inputs.text[:, :, 0]], atol=1e-5)
    np.testing.assert_allclose(x[:, :, 1], rows[inputs.text[:, :, 1]], atol=1e-5)
    out = rows[inputs.last] + text_in["out_slot"]
    np.testing.assert_allclose(x[:, :, 5], out, atol=1e-5)


def test_stored_and_served_tables_give_the_same_positions() -> None:
    """A table in float32, as in training, and one that was cast before, as in the step."""
    config = dataclasses.replace(
        TINY, transformer=dataclasses.replace(TINY.transformer, dtype="bfloat16")
    )
    params, clock = random_params(config)["backbone"], jnp.zeros(2, jnp.uint32)
    run = jax.jit(functools.partial(embed, config))
    wanted = run(params, make_inputs(config), clock)
    got = run(cast_params(params, "bfloat16"), make_inputs(config), clock)
    assert wanted.x.dtype == "bfloat16"
    np.testing.assert_array_equal(got.x, wanted.x)


def test_parts_of_our_own_add_nothing_at_first() -> None:
    """A released backbone, which knows no transcript or self audio, computes what it computed."""
    inputs = as_variant(make_inputs(TINY), (False, False))
    key = jax.random.key(0)
    backbone = {
        "audio_in": AudioIn(TINY).init(key, inputs.user, inputs.self_audio, inputs.self_audio_gain)[
            "params"
        ],
        "text_in": TextIn(TINY).init(key, None, inputs.user_transcript, inputs.last)["params"],
    }
    found = embed(TINY, backbone, inputs, np.zeros(2, np.uint32)).x.reshape(2, 3, 3, -1)
    tables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), backbone)
    user = inputs.user.reshape(2, 3, 2, -1)  # all levels of a position
    bags = tables["audio_in"]["user_table"][np.arange(user.shape[-1]), user].sum(axis=3)
    # Measured: 1.5e-6 and 2e-7.
    np.testing.assert_allclose(found[:, :, :2], norm(bags, np.ones(1)), atol=1e-5)
    rows = tables["text_in"]["table"][inputs.last]
    np.testing.assert_allclose(found[:, :, 2], norm(rows, np.ones(1)), atol=1e-5)


def test_what_does_not_exist_is_moved_to_the_end() -> None:
    inputs = make_inputs(TINY)
    calm = run(TINY, inputs, [0, 0])
    text, has_frame, exists = inputs.text.copy(), inputs.has_frame.copy(), np.ones((2, 3), bool)
    text[0, 1] = [PAD, 9]  # row 0: one empty slot, and later no frame
    has_frame[0, 2] = False
    exists[1, 2] = False  # row 1 is one micro-turn shorter
    frame = inputs.frame.copy()
    frame[0, 2] = np.nan
    inputs = inputs._replace(text=text, has_frame=has_frame, frame=frame, exists=exists)
    found = run(TINY, inputs, [0, 0])
    kept = np.ones((2, 18), bool)
    kept[0, [6, 14]] = False
    kept[1, 12:18] = False
    for row, count in enumerate((16, 12)):
        np.testing.assert_array_equal(found.valid[row], np.arange(18) < count)
        np.testing.assert_array_equal(found.time[row, :count], calm.time[row, kept[row]])
        same = np.arange(18)[kept[row]] != 7  # position 7 has another token
        np.testing.assert_array_equal(found.x[row, :count][same], calm.x[row, kept[row]][same])
        assert np.all(found.x[row, count:] == 0)
    np.testing.assert_array_equal(found.ends[0], [[3, 4, 5], [8, 9, 10], [13, 14, 15]])
    np.testing.assert_array_equal(found.ends[1, :2], [[3, 4, 5], [9, 10, 11]])


def test_rows_that_do_not_take_part_have_no_positions() -> None:
    backbone, inputs = random_params(TINY)["backbone"], make_inputs(TINY)
    active = np.array([True, False])
    found = embed(TINY, backbone, inputs, np.zeros(2, np.uint32), active=active)
    np.testing.assert_array_equal(found.valid, [[True] * 18, [False] * 18])
    assert np.all(found.x[1] == 0)


def test_arrivals_are_text_at_their_time() -> None:
    """They stand between the micro-turns' own positions, in any order given."""
    backbone = random_params(WIDE)["backbone"]
    inputs = as_variant(make_inputs(WIDE), (False, False))  # places 7 to 11 of 12
    time = np.array([[12, 0, 26, 14], [1, 2, 35, 99]], np.uint32)
    token = np.array([[20, 21, 22, PAD], [23, 24, PAD, 25]], np.int32)
    found = embed(WIDE, backbone, inputs, np.zeros(2, np.uint32), Arrivals(token, time))
    own = [turn * 12 + place for turn in range(3) for place in range(7, 12)]
    for row in range(2):
        mine = [int(at) for at, one in zip(time[row], token[row], strict=True) if one != PAD]
        order = sorted([*own, *mine])
        count = len(order)
        np.testing.assert_array_equal(found.time[row, :count], order)
        np.testing.assert_array_equal(found.valid[row], np.arange(19) < count)
        for at, one, index in zip(time[row], token[row], found.arrived[row], strict=True):
            if one != PAD:
                assert found.time[row, index] == at
                alone = embed_arrivals(WIDE, backbone, Arrivals(one[None, None], at[None, None]))
                np.testing.assert_array_equal(found.x[row, index], alone.x[0, 0])
        ends = [[order.index(turn * 12 + place) for place in range(7, 12)] for turn in range(3)]
        np.testing.assert_array_equal(found.ends[row], ends)


def test_what_is_read_off() -> None:
    x = np.arange(2 * 9).reshape(2, 9, 1)
    found = take_positions(jnp.asarray(x), jnp.array([[[0, 8], [3, 1]]] * 2))
    np.testing.assert_array_equal(found[..., 0], [[[0, 8], [3, 1]], [[9, 17], [12, 10]]])
