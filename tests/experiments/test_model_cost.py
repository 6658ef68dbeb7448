"""Counted costs, compared with traced, lowered and allocated programs."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.compiled import costs
from interaction.compiled.slices import find_slice
from interaction.config import ModelConfig
from interaction.distributed import experts
from interaction.model import session_state, streaming
from interaction.model.parameters import init_model_params
from interaction.model.sequence import forward
from interaction.model.turn_inputs import TurnInputs, assemble, silent_outputs
from interaction.modules import decoder_attention
from interaction.ops import dense, mel
from interaction.presets import PRESETS
from interaction.training import flops
from interaction.types import Array, Chunk


def subjaxprs(value: object) -> Iterator:
    if isinstance(value, tuple | list):
        for item in value:
            yield from subjaxprs(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr


def product_flops(jaxpr) -> int:  # noqa: ANN001
    """FLOPs of all matrix products of a traced function, with every iteration of loops."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [product_flops(sub) for sub in subjaxprs(list(eqn.params.values()))]
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * eqn.outvars[0].aval.size
        elif eqn.primitive.name == "cond":
            total += max(inner)
        else:
            assert eqn.primitive.name != "while" or not sum(inner), "a loop of unknown length"
            total += sum(inner) * eqn.params.get("length", 1)
    return total


def few_experts(x: Array, chosen: Array, weights: Array, layer: experts.Experts) -> Array:
    """Runs only the chosen experts, without tiles or padding.

    Args:
      x: float32[t, d].
      chosen: int32[t, k], experts of each token.
      weights: float32[t, k].
      layer: Weights of all experts.

    Returns:
      float32[t, d].
    """
    gate, up, down = layer.gate, layer.up, layer.down
    hidden = jax.nn.silu(jnp.einsum("td,tkdf->tkf", x, gate[chosen]))
    hidden = hidden * jnp.einsum("td,tkdf->tkf", x, up[chosen])
    return jnp.einsum("tkf,tkfd->td", hidden * weights[..., None], down[chosen])


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """`tiny` with a dense layer, without padding of spectra, experts and products."""
    monkeypatch.setattr(experts, "chosen_experts", few_experts)
    for name in ("_ROWS", "_ENOUGH", "_COLUMNS"):
        monkeypatch.setattr(dense, name, 1)
    monkeypatch.setattr(mel, "_TILE", 4)
    tiny = PRESETS["tiny"]()
    layers = dataclasses.replace(tiny.transformer, dense_layers=1, dense_ffn=24)
    return dataclasses.replace(tiny, transformer=layers)


def inputs(config: ModelConfig, turns: int, everything: bool) -> TurnInputs:
    user = jnp.zeros((1, 1, config.audio.user_frames, config.audio.mels))
    turn = assemble(config, user, silent_outputs(config, 1), None, jnp.ones((1, 1)))
    if everything:
        text = jnp.zeros((1, 1, config.text_slots), jnp.int32)
        frame = jnp.zeros((1, 1, 2, config.frame_size, config.frame_size, 3))
        turn = turn._replace(text=text, frame=frame, has_frame=jnp.ones((1, 1), bool))
    return jax.tree.map(lambda a: jnp.repeat(a, turns, axis=1), turn)


@pytest.mark.parametrize("everything", [False, True])
def test_step_flops(config: ModelConfig, everything: bool) -> None:
    params = jax.eval_shape(lambda: init_model_params(config, jax.random.key(0)))
    state = jax.eval_shape(lambda: session_state.init_state(config, jnp.zeros((1, 2), jnp.uint32)))
    turn = inputs(config, 1, everything)
    chunk = Chunk(audio=jnp.zeros((1, config.audio.turn_samples)))
    if everything:
        chunk = chunk._replace(
            text=turn.text[:, 0], frame=turn.frame[:, 0, 0], has_frame=turn.has_frame[:, 0]
        )
    traced = jax.make_jaxpr(lambda *args: streaming.step(config, *args))(params, state, chunk)
    counted = costs.step_flops(config, text=everything, frame=everything)
    assert counted == product_flops(traced.jaxpr)


@pytest.mark.parametrize("everything", [False, True])
def test_train_flops_are_three_forwards(
    config: ModelConfig, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its loops have no known length; windows are checked below.
    monkeypatch.setattr(decoder_attention, "attention_sequence", lambda q, *_: q)
    turns = 5
    params = jax.eval_shape(lambda: init_model_params(config, jax.random.key(0)))
    traced = jax.make_jaxpr(lambda *args: forward(config, *args))(
        params["backbone"], params["router_bias"], inputs(config, turns, everything)
    )
    counted = flops.train_flops(config, turns, text=everything, frame=everything)
    beside = {"attention", "relative bias", "speech condition", "speech flow"}
    products = sum(count for part, count in counted.items() if part not in beside)
    assert products / 3 == product_flops(traced.jaxpr)


def test_forward_flops_against_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "chosen_experts", few_experts)
    for name in ("_ROWS", "_ENOUGH", "_COLUMNS"):
        monkeypatch.setattr(dense, name, 1)
    tiny = PRESETS["tiny"]()
    wide = dataclasses.replace(tiny.transformer, dim=512, expert_ffn=256, heads=4, head_dim=32)
    config, turns = dataclasses.replace(tiny, transformer=wide), 4
    params = jax.eval_shape(lambda: init_model_params(config, jax.random.key(0)))
    lowered = jax.jit(lambda *args: forward(config, *args)).lower(
        params["backbone"], params["router_bias"], inputs(config, turns, False)
    )
    found = lowered.cost_analysis()["flops"]
    counted = flops.train_flops(config, turns)
    backbone = sum(count for part, count in counted.items() if not part.startswith("speech")) / 3
    assert backbone == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(("tokens", "window"), [(7, 20), (20, 20), (53, 20), (53, 1)])
def test_pairs_inside_windows(tokens: int, window: int) -> None:
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    sliding = (distance >= 0) & (distance < window)
    long = (distance >= 0) & ((distance < window) | (np.arange(tokens) < 16))
    biased = (distance >= 0) & (distance < min(window, 10))
    config = PRESETS["tiny"]()
    cfg = dataclasses.replace(
        config.transformer, window=window, long_window=window, relative_extent=10
    )
    audio = dataclasses.replace(
        config.audio,
        user=dataclasses.replace(config.audio.user, hop=3_200, window=3_200, n_fft=4_096),
    )
    config = dataclasses.replace(
        config, transformer=cfg, audio=audio, audio_positions=1, text_slots=tokens - 2
    )
    counted = flops.train_flops(config, turns=1, text=True)  # as many positions as `tokens`
    pairs = cfg.layers // 2 * (sliding.sum() + long.sum())
    assert counted["attention"] == 3 * 4 * cfg.heads * cfg.head_dim * pairs
    distances = cfg.layers // 2 * (sliding.sum() + biased.sum())
    assert counted["relative bias"] == 3 * 2 * cfg.heads * cfg.relative_states * distances


def test_bytes_are_those_of_real_arrays() -> None:
    config = PRESETS["tiny"]()
    state = session_state.init_state(config, session_state.session_keys(jnp.arange(3)))
    assert 3 * costs.state_bytes(config) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    shapes = jax.eval_shape(lambda: init_model_params(config, jax.random.key(0)))
    params = [np.empty(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)]
    assert sum(costs.weight_bytes(config).values()) == sum(leaf.nbytes for leaf in params)
    caches = jax.tree.leaves([state.memory.caches[kind] for kind in ("sliding", "long")])
    slot = sum(leaf.nbytes // (3 * leaf.shape[2]) for leaf in caches)
    assert costs.kv_bytes(config) == slot


def test_a_session_of_small_by_hand() -> None:
    """Rings of blocks of 256 and 512 keys, the first 16, convolution tails, the last frame."""
    config = PRESETS["small"]()
    slots = 35 * 1_024 + 7 * (66 * 512 + 16)
    assert costs.kv_bytes(config) == 42 * 2 * 8 * 128 * 2
    tails = 42 * 3 * 2 * (1_024 + 4_096) * 4
    large = slots * 2 * 8 * 128 * 2 + tails + 240 * 240 * 3 * 4
    assert large < costs.state_bytes(config) < large + 200_000


def test_bfloat16_halves_the_bytes_of_products() -> None:
    config = PRESETS["tiny"]()
    half = dataclasses.replace(config.transformer, dtype="bfloat16")
    half = dataclasses.replace(config, transformer=half)
    one, two = costs.weight_bytes(half), costs.weight_bytes(config)
    for part in ("experts", "shared experts", "text head"):
        assert one[part] == pytest.approx(two[part] / 2, rel=0.01)
    assert one["router"] == two["router"]
    assert costs.kv_bytes(half) == costs.kv_bytes(config) / 2
    state = session_state.init_state(config, session_state.session_keys(jnp.arange(1)))
    caches = sum(leaf.nbytes for leaf in jax.tree.leaves(state.memory.caches))
    assert costs.state_bytes(half) == costs.state_bytes(config) - caches / 2


def test_parts_sum_to_the_total() -> None:
    config = PRESETS["tiny"]()
    counts = costs.parameter_counts(config)
    assert sum(counts.by_part.values()) == counts.total
    cfg = config.transformer
    expert = 3 * cfg.dim * cfg.expert_ffn
    idle = cfg.layers * (cfg.experts - cfg.experts_per_token) * expert
    tables = config.vocab * config.speech.token_dim + 2 * 80 * 16 * cfg.dim
    folds = 75 * 16 + 64 * 16 + 256 * 32 + 64 * 32 + 16 + 16 + 32 + 32
    assert counts.active == counts.total - idle - tables - folds


def test_roofline() -> None:
    config, place = PRESETS["small"](), find_slice("v5p-64")
    time = costs.step_time(config, place, sessions=64)
    weights = costs.weight_bytes(config)
    read = sum(weights.values()) + 64 * costs.state_bytes(config)
    most = (read + 3 * weights["speech flow"]) / (32 * 2.77e12)
    assert 0.97 * most < time.hbm < most
    assert time.flops == 64 * costs.step_flops(config) / (32 * 459e12)
    assert time.floor == max(time.hbm, time.flops)
    assert time.with_overhead == pytest.approx(time.floor + 42 * 0.3e-3)
    few = costs.step_bytes(config, sessions=1)  # five tokens choose at most 30 of 256 experts
    assert few < weights["experts"] * 30 / 256 + sum(weights.values()) - weights["experts"] + 2e9


@pytest.mark.parametrize("preset", ["base", "small", "medium", "large"])
def test_sessions_that_fit(preset: str) -> None:
    config = PRESETS[preset]()
    for place in costs.serving_slices(config, 64):
        count = costs.sessions_that_fit(config, place)
        used = sum(costs.weight_bytes(config).values()) + count * costs.state_bytes(config)
        assert count >= 64
        assert used <= 0.9 * place.hbm_bytes < used + costs.state_bytes(config)


def test_train_rate() -> None:
    config, place = PRESETS["small"](), find_slice("v5p-2048")
    rate = flops.train_rate(config, place, turns=1_500, mfu=0.33)
    per_token = sum(flops.train_flops(config, 1_500).values()) / (5 * 1_500)
    assert rate.tokens == pytest.approx(0.33 * 1_024 * 459e12 / per_token)
    assert rate.audio == pytest.approx(rate.tokens / 25)
    counts = costs.parameter_counts(config)
    multiplied = counts.active - counts.by_part["token table"]
    assert per_token == pytest.approx(6 * multiplied, rel=0.05)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.model_cost", *arguments]
    root = pathlib.Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)


def test_command(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cost.json"
    done = run("--preset=small", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "modelled" in done.stdout
    figures = json.loads(path.read_text())
    counts = costs.parameter_counts(PRESETS["small"]())
    assert figures["parameters_total"] == counts.total
    assert figures["parameters_active"] == counts.active
    assert figures["parameters_added"] == 161_632_992
    assert f"{counts.total:,} parameters, {counts.active:,} active" in done.stdout


def test_unknown_preset_names_the_choices() -> None:
    done = run("--preset=huge")
    assert done.returncode != 0
    assert "tiny|demo|base|inkling_small|inkling|small" in done.stderr
