"""Sizes of the presets: parameters, windows, and the shapes for which the kernels are tuned."""

import dataclasses
import functools
import math

import jax
import pytest

from interaction.compiled.costs import parameter_counts
from interaction.config import PREFILL_TURNS
from interaction.model.parameters import init_model_params
from interaction.ops.ring import ring_capacity
from interaction.presets import PRESETS
from interaction.types import Params
from pallas_kernels import shapes

TOTAL = {
    "tiny": 328_976,
    "demo": 12_288_594,
    "base": 1_010_315_616,
    "small": 274_449_340_960,
    "medium": 661_186_826_496,
    "large": 1_292_720_654_688,
    "background_demo": 4_871_746,
    "background_base": 4_213_080_400,
    "background_small": 661_064_339_696,
}
ACTIVE = {"base": 267_596_128, "small": 12_036_250_144}
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


def test_sizes_are_as_named() -> None:
    assert ACTIVE["small"] == pytest.approx(12e9, rel=0.01)
    assert TOTAL["base"] == pytest.approx(1e9, rel=0.02)
    assert TOTAL["small"] == pytest.approx(276e9, rel=0.01)
    assert TOTAL["medium"] == pytest.approx(661e9, rel=0.01)
    assert TOTAL["large"] == pytest.approx(1_293e9, rel=0.01)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_one_more_key_would_double_a_ring(preset: str) -> None:
    config = PRESETS[preset]()
    span = config.turn_span * (PREFILL_TURNS if preset in LIVE else 1)  # positions written at once
    for window in (config.transformer.window, config.transformer.long_window):
        capacity = ring_capacity(window, span)
        if preset not in ("tiny", "demo"):
            assert ring_capacity(window + 1, span) == 2 * capacity
        assert window <= capacity < 2 * window + span


@pytest.mark.parametrize("preset", ["base", "small", "medium", "large"])
def test_minutes_that_are_remembered(preset: str) -> None:
    config = PRESETS[preset]()
    turns_a_minute = 60 * config.audio.sample_rate / config.audio.turn_samples
    positions = turns_a_minute * (config.audio_positions + 1)
    assert config.transformer.window / positions > 2
    assert config.transformer.long_window / positions > 30


@pytest.mark.parametrize("preset", sorted(shapes.PRESETS))
def test_kernels_know_the_shapes(preset: str) -> None:
    cfg, layer = PRESETS[preset]().transformer, shapes.PRESETS[preset]
    ours = (cfg.dim, cfg.experts, cfg.experts_per_token, cfg.expert_ffn)
    assert ours == (layer.dim, layer.experts, layer.experts_per_token, layer.ffn)


@pytest.mark.parametrize("preset", ["base", "small", "medium", "large"])
def test_sizes_are_multiples_of_256(preset: str) -> None:
    config = PRESETS[preset]()
    cfg = config.transformer
    widths = (cfg.dim, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim)
    assert not any(size % 256 for size in (*widths, cfg.expert_ffn, cfg.shared_ffn, config.vocab))


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
    layers = [parts(name)["sliding"] + parts(name)["long"] for name in (preset, LIVE[preset])]
    assert layers[0] > 2 * layers[1]


def test_background_of_the_demo_learns_on_from_its_backbone() -> None:
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, params(name)["backbone"])
        for name in ("background_demo", "demo")
    ]
    assert shapes[0] == shapes[1]
