"""The benchmark of training: its figures, its baseline, and remat policies."""

import dataclasses
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench_train
from interaction import presets
from interaction.compiled.device_memory import Memory, hbm
from interaction.config import ModelConfig
from interaction.distributed import sharding
from interaction.model import sequence, turn_inputs
from interaction.training.flops import train_flops
from interaction.training.speech_loss import flow_rows
from interaction.types import Special
from tests.support import random_params

TURNS, SESSIONS = 16, 2
KEYS = {
    "audio_s_per_s",
    "torch_audio_s_per_s",
    "ratio_to_torch",
    "torch_threads",
    "cores",
    "batch",
    "steps",
    "flops_per_step",
    "flops_by_part",
    "model_flop_per_s",
    "mfu",
    "peak_flop_per_s",
    "peak_source",
    "temp_bytes",
    "argument_bytes",
    "remat",
}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    # These tests need fast compilation, not fast programs.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def trainer() -> bench_train.Trainer:
    config = bench_train.settings("tiny", SESSIONS)
    transformer = dataclasses.replace(config.model.transformer, layers=2)
    model = dataclasses.replace(config.model, transformer=transformer)
    config = dataclasses.replace(config, model=model)
    batch = bench_train.make_batch(model, SESSIONS, TURNS)
    return bench_train.Trainer(config, batch, (transformer.remat,), sharding.make_mesh({}))


@pytest.fixture(scope="module")
def figures(trainer: bench_train.Trainer) -> dict:
    return bench_train.measure(trainer, steps=2, beside_torch=False)


def test_figures_are_complete_and_consistent(trainer: bench_train.Trainer, figures: dict) -> None:
    assert figures.keys() >= KEYS
    assert figures["ratio_to_torch"] is None
    counted = train_flops(trainer.config.model, TURNS)
    by_part = figures["flops_by_part"]
    assert by_part == {part: SESSIONS * count for part, count in counted.items()}
    assert figures["flops_per_step"] == sum(by_part.values()) > 0
    assert by_part["speech condition"] > by_part["speech flow"] > 0
    rate, peak = figures["model_flop_per_s"], figures["peak_flop_per_s"]
    assert rate == pytest.approx(figures["flops_per_step"] / figures["step_s"])
    assert figures["mfu"] == pytest.approx(rate / peak)
    assert 0 < figures["mfu"] < 1
    assert figures["audio_s_per_s"] == pytest.approx(SESSIONS * TURNS * 0.2 / figures["step_s"])
    assert figures["temp_bytes"] > 0 and figures["argument_bytes"] > 0
    assert figures["remat"].keys() == {"nothing"}


def test_figures_print_and_draw(figures: dict, tmp_path) -> None:  # noqa: ANN001
    lines = bench_train.table(figures).splitlines()
    for name in ("audio_s_per_s", "mfu", "peak_source", "temp_bytes"):
        assert any(line.startswith(name) for line in lines), name
    assert not any(line.startswith("ratio_to_torch") for line in lines), "not measured"
    bench_train.draw(figures, "tiny", tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 10_000


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_has_settings_for_one_device(preset: str) -> None:
    config = bench_train.settings(preset, batch=6)
    assert config.model == presets.PRESETS[preset]()
    assert (config.batch, config.mesh) == (6, {})
    assert config.batch % config.accumulate == 0


def test_policies_are_compared(trainer: bench_train.Trainer, figures: dict) -> None:
    class Both:
        policies = ("nothing", "everything")
        config, batch, put = trainer.config, trainer.batch, trainer.put

        def step(self, policy: str) -> float:
            time.sleep(0.002 if policy == "nothing" else 0.02)
            return 0.0

        def memory(self, policy: str) -> Memory:
            return trainer.memory("nothing")._replace(temporaries=len(policy))

    found = bench_train.measure(Both(), steps=3, beside_torch=False)
    assert found.keys() == figures.keys()
    nothing, everything = (found["remat"][policy] for policy in Both.policies)
    assert nothing["step_s"] == found["step_s"] < everything["step_s"]
    assert (nothing["temp_bytes"], everything["temp_bytes"]) == (7, 10)


def test_remat_saves_memory_and_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    # On one CPU the layers are recomputed under every policy.
    monkeypatch.setattr(sequence, "platform", lambda: "gpu")
    config, shape, rng = presets.tiny(), (4, 16), np.random.default_rng(0)
    frames = (*shape, config.audio.user_frames, config.audio.mels)
    inputs = turn_inputs.TurnInputs(
        user=rng.integers(0, config.audio.bins, frames, np.int32),
        self_audio=rng.integers(0, config.audio.bins, frames, np.int32),
        self_audio_gain=np.ones(shape, np.float32),
        user_transcript=rng.integers(0, config.vocab, (*shape, config.audio_positions), np.int32),
        last=rng.integers(0, config.vocab, shape, np.int32),
    )
    params = random_params(config)
    temporaries, found = {}, {}
    for policy in ("nothing", "everything"):
        transformer = dataclasses.replace(config.transformer, remat=policy)
        mine = dataclasses.replace(config, transformer=transformer)

        def loss(backbone: dict, mine: ModelConfig = mine) -> jax.Array:
            return jnp.mean(
                jnp.square(sequence.encode(mine, backbone, params["router_bias"], inputs)[0])
            )

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params["backbone"]).compile()
        temporaries[policy] = hbm(compiled, {}).temporaries
        found[policy] = jax.tree.leaves(compiled(params["backbone"]))
    assert temporaries["everything"] < 0.6 * temporaries["nothing"], "measured: 0.35"
    for again, kept in zip(found["everything"], found["nothing"], strict=True):
        # measured: 4e-7
        np.testing.assert_allclose(again, kept, atol=3e-6, rtol=0)


@pytest.fixture
def torch_train() -> Iterator:
    torch = pytest.importorskip("torch", reason="needs the bench extra")
    from experiments.baselines import torch_train

    torch.manual_seed(0)
    yield torch_train


def test_baseline_augments_transcripts_and_tokens_within_a_session(torch_train) -> None:  # noqa: ANN001
    import torch

    words = torch.arange(400).view(2, 100, 2) % 200 + 200 * torch.tensor([1, 2]).view(2, 1, 1)
    user_transcript = torch.where(torch.rand(words.shape) < 0.5, words, Special.NONE)
    found = torch_train.corrupt_transcript(user_transcript)
    for mine, before in zip(found, user_transcript, strict=True):
        wrong = mine[mine != before]
        assert set(wrong.tolist()) <= {*before.flatten().tolist(), int(Special.NONE)}
        assert (mine[before == Special.NONE] == Special.NONE).all(), "no word is added"
    tokens = torch.arange(2)[:, None, None].expand(2, 30, 12) * 1_000 + torch.arange(30)[:, None]
    spliced = torch_train.spliced(tokens)
    assert (spliced // 1_000 == tokens // 1_000).all(), "rows of another session"
    assert (spliced[:, :, 6:] == tokens[:, :, 6:]).all(), "the newer half is kept"
    assert 0.2 < (spliced[:, :, 0] != tokens[:, :, 0]).float().mean() < 0.8


def test_baseline_has_as_many_rows_and_the_same_loss(
    trainer: bench_train.Trainer,
    torch_train,  # noqa: ANN001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers, rows = torch_train.layers, []
    condition, flow = layers.speech_condition, layers.flow_estimate

    def count_condition(p: dict, hidden, *rest):  # noqa: ANN001, ANN002, ANN202
        rows.append(("condition", len(hidden)))
        return condition(p, hidden, *rest)

    def count_flow(p: dict, point, *rest):  # noqa: ANN001, ANN002, ANN202
        rows.append(("flow", len(point)))
        return flow(p, point, *rest)

    monkeypatch.setattr(layers, "speech_condition", count_condition)
    monkeypatch.setattr(layers, "flow_estimate", count_flow)
    step, label = bench_train.torch_step(trainer, "cpu")
    theirs = step()
    picked, flowing = (SESSIONS * count for count in flow_rows(TURNS))
    assert rows == [("condition", picked)] * 2 + [("flow", flowing)]
    assert "CPU" in label
    ours = trainer.step("nothing")
    # The noise of the two sides differs; measured: 3%.
    assert theirs == pytest.approx(ours, rel=0.1)
