"""Sizes of the presets: parameters, windows, and the shapes for which the kernels are tuned."""

import dataclasses
import functools
import math

import jax
import pytest

from interaction import config as config_module
from interaction.compiled.costs import inkling_counts, parameter_counts
from interaction.config import PREFILL_TURNS, FirstTransformerConfig, TransformerConfig
from interaction.model.parameters import init_model_params
from interaction.ops.block_attention import key_block
from interaction.ops.ring_attention import capacity
from interaction.presets import PRESETS
from interaction.types import Params
from pallas_kernels import shapes

TOTAL = {
    "tiny": 344_084,
    "demo": 13_976_854,
    "base": 986_242_928,
    "inkling_small": 263_886_149_386,
    "inkling": 947_285_620_514,
    "small": 276_471_174_922,
    "medium": 665_225_535_254,
    "large": 1_299_819_128_610,
    "background_demo": 6_560_006,
    "background_base": 4_164_209_000,
    "background_small": 665_070_703_366,
}
ACTIVE = {
    "base": 264_783_344,
    "inkling_small": 12_101_881_098,
    "inkling": 41_165_022_498,
    "small": 12_103_994_634,
}
# Parameters of the reference, transformers' own class, counted on its meta device; see
# `test_presets_parity`.
REFERENCE = {
    "inkling_small": {
        "attention": 1_850_100_224,
        "short convolutions": 1_720_320,
        "dense layers": 402_653_184,
        "experts": 257_698_037_760,
        "shared experts": 2_013_265_920,
        "router": 42_270_720,
        "norms and scales": 356_394,
        "token table": 823_394_304,
        "audio table": 5_242_880,
        "video in": 64_080_384,
        "text head": 823_394_304,
    },
    "inkling": {
        "attention": 8_582_193_664,
        "short convolutions": 4_235_264,
        "dense layers": 905_969_664,
        "experts": 927_712_935_936,
        "shared experts": 7_247_757_312,
        "router": 101_449_728,
        "norms and scales": 829_506,
        "token table": 1_235_091_456,
        "audio table": 7_864_320,
        "video in": 83_743_232,
        "text head": 1_235_091_456,
    },
}
LIVE = {"background_demo": "demo", "background_base": "base", "background_small": "small"}


@functools.cache
def params(preset: str) -> Params:
    """Shapes of a fresh model."""
    init = functools.partial(init_model_params, PRESETS[preset]())
    return jax.eval_shape(init, jax.random.key(0))


@functools.cache
def parts(preset: str) -> dict[str, int]:
    """Parameters of each part of the tree, from shapes."""
    tree = {**params(preset)}
    tree = {**tree.pop("backbone"), **tree}
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in tree.items()
    }


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_total(preset: str) -> None:
    assert sum(parts(preset).values()) == TOTAL[preset]


@pytest.mark.parametrize("preset", sorted(ACTIVE))
def test_active(preset: str) -> None:
    counts = parameter_counts(PRESETS[preset]())
    assert (counts.total, counts.active) == (TOTAL[preset], ACTIVE[preset])


@pytest.mark.parametrize("preset", sorted(REFERENCE))
def test_released_models_have_the_parts_of_the_reference(preset: str) -> None:
    counts = inkling_counts(PRESETS[preset]())
    assert counts.by_part == REFERENCE[preset]
    assert counts.total == sum(REFERENCE[preset].values())


def test_what_is_added_to_a_released_model() -> None:
    """By hand, from the widths: tables, gain and offset, flow head and vocoder."""
    counts = parameter_counts(PRESETS["inkling_small"]()).by_part
    added = {part: count for part, count in counts.items() if part not in REFERENCE["inkling"]}
    width, frames = 2_048, 16
    inputs = 16 * 256 + 16 * 80 + 4_096 + 1  # tokens, frames before, hidden state, bias
    assert added.pop("speech condition") == (
        width * (inputs + 3 * (2 * width + 1) + 1 + frames * (256 + 80))
    )
    assert added == {
        "own audio table": 80 * 16 * 4_096,
        "text streams": 2 * 4_096,
        "selection bias": 42 * 256,
        "speech table": 201_024 * 256,
        "speech flow": 40_655_872,
        "vocoder": 8_668_384,
    }


def test_sizes_are_as_named() -> None:
    assert TOTAL["small"] == pytest.approx(276e9, rel=0.01)
    assert ACTIVE["small"] == pytest.approx(12e9, rel=0.01)
    before = inkling_counts(PRESETS["small"]())
    assert before.total == pytest.approx(276e9, rel=0.01)
    assert before.active == pytest.approx(12e9, rel=0.01)
    assert ACTIVE["inkling_small"] == pytest.approx(12e9, rel=0.01)
    assert ACTIVE["inkling"] == pytest.approx(41e9, rel=0.01)
    assert TOTAL["base"] == pytest.approx(1e9, rel=0.02)
    assert TOTAL["medium"] == pytest.approx(665e9, rel=0.01)
    assert TOTAL["large"] == pytest.approx(1_300e9, rel=0.01)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_ring_has_room_for_window_step_and_a_block(preset: str) -> None:
    config = PRESETS[preset]()
    cfg, turns = config.transformer, PREFILL_TURNS if preset in LIVE else 1
    span = config.turn_span * turns  # positions written at once
    for window in (cfg.window, cfg.long_window):
        block, slots = key_block(window), capacity(window, span)
        assert slots % block == 0
        assert window + span - 1 + block <= slots < window + span + 2 * block


@pytest.mark.parametrize("preset", ["base", "inkling_small", "inkling", "small", "medium", "large"])
def test_seconds_that_are_remembered(preset: str) -> None:
    config = PRESETS[preset]()
    turns = config.audio.sample_rate / config.audio.turn_samples
    positions = turns * (config.audio_positions + 1)  # in a second
    assert config.transformer.window / positions > 20
    assert config.transformer.long_window / positions > 20 * 60


def test_at_most_80_knobs() -> None:
    """Fields of a model's configuration; the first models' transformer is a choice, not more."""
    kinds = [
        kind
        for kind in vars(config_module).values()
        if dataclasses.is_dataclass(kind) and kind is not FirstTransformerConfig
    ]
    assert len(kinds) == 6
    knobs = sum(len(dataclasses.fields(kind)) for kind in kinds)
    own = {field.name for field in dataclasses.fields(FirstTransformerConfig)}
    own -= {field.name for field in dataclasses.fields(TransformerConfig)}
    assert knobs + len(own) <= 80


@pytest.mark.parametrize("preset", sorted(shapes.PRESETS))
def test_kernels_know_the_shapes(preset: str) -> None:
    cfg, layer = PRESETS[preset]().transformer, shapes.PRESETS[preset]
    ours = (cfg.dim, cfg.experts, cfg.experts_per_token, cfg.expert_ffn)
    assert ours == (layer.dim, layer.experts, layer.experts_per_token, layer.ffn)


@pytest.mark.parametrize("preset", ["base", "inkling_small", "inkling", "small", "medium", "large"])
def test_sizes_are_multiples_of_256(preset: str) -> None:
    config = PRESETS[preset]()
    cfg = config.transformer
    heads = (cfg.heads, cfg.kv_heads, cfg.sliding_kv_heads)
    widths = (cfg.dim, cfg.expert_ffn, *(count * cfg.head_dim for count in heads))
    assert not any(size % 256 for size in widths)
    assert config.vocab % 64 == 0  # that of the released models has no larger power of two


@pytest.mark.parametrize("preset", sorted(LIVE))
def test_background_reads_the_record_of_its_live_model(preset: str) -> None:
    config, live = PRESETS[preset](), PRESETS[LIVE[preset]]()
    differs = ("transformer", "speech", "vocoder", "self_audio")
    for field in dataclasses.fields(config):
        if field.name not in differs:
            assert getattr(config, field.name) == getattr(live, field.name)
    assert config.transformer.long_window > live.transformer.long_window
    assert live.self_audio and not config.self_audio


@pytest.mark.parametrize("preset", ["background_base", "background_small"])
def test_background_is_larger(preset: str) -> None:
    layers = [
        sum(count for part, count in parts(name).items() if part.endswith(("sliding", "long")))
        for name in (preset, LIVE[preset])
    ]
    assert layers[0] > 2 * layers[1]


def test_background_of_the_demo_learns_on_from_its_backbone() -> None:
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, params(name)["backbone"])
        for name in ("background_demo", "demo")
    ]
    assert shapes[0] == shapes[1]
