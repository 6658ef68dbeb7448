"""Training of the live model: its inputs, its gradients, and sessions in groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.model import sequence
from interaction.pretrained.tree_paths import flatten
from interaction.training import conversation_loss
from interaction.types import Special
from tests.support import SMALLEST, random_params

CONFIG = SMALLEST


def _batch(sessions: int, turns: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    samples = (sessions, turns * CONFIG.audio.turn_samples)
    words = rng.integers(Special.COUNT, CONFIG.vocab, (sessions, turns, CONFIG.audio_positions))
    return {
        "user": jnp.asarray(rng.integers(-9_000, 9_000, samples), jnp.int16),
        "model": jnp.asarray(rng.integers(-9_000, 9_000, samples), jnp.int16),
        "text": jnp.asarray(rng.integers(0, CONFIG.vocab, (sessions, turns)), jnp.int32),
        "user_transcript": jnp.asarray(np.where(words % 3 == 0, words, Special.NONE), jnp.int32),
    }


def _keys(sessions: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), sessions)


def test_inputs_are_one_micro_turn_behind_their_targets() -> None:
    batch = _batch(8, 10)
    mel = jnp.full((8, 10, CONFIG.audio.speech_frames, CONFIG.audio.mels), -3.0)
    inputs = conversation_loss.turn_inputs(CONFIG, batch, mel, _keys(len(mel)))
    user_transcript = np.asarray(inputs.user_transcript)
    target = np.asarray(batch["user_transcript"])
    assert (user_transcript[:, 0] == Special.NONE).all()
    right = user_transcript[:, 1:] == target[:, :-1]
    assert right.mean() > 0.8, "most words are right"
    assert (right | (target[:, :-1] != Special.NONE)).all(), "no word is added"
    assert (user_transcript[:, 1:] == target[:, 1:])[target[:, 1:] != Special.NONE].mean() < 0.2
    np.testing.assert_array_equal(inputs.last[:, 0], Special.SILENT)
    np.testing.assert_array_equal(inputs.last[:, 1:], batch["text"][:, :-1])


def test_groups_of_sessions_equal_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    params, batch = random_params(CONFIG), _batch(6, 6)
    mel = jnp.full((6, 6, CONFIG.audio.speech_frames, CONFIG.audio.mels), -3.0)
    inputs = conversation_loss.turn_inputs(CONFIG, batch, mel, _keys(len(mel)))
    found = []
    for at_once in (2, 6):
        monkeypatch.setattr(sequence, "CPU_SESSIONS", at_once)
        run = jax.jit(lambda p: sequence.forward(CONFIG, p["backbone"], p["router_bias"], inputs))
        found.append(run(params))
    for few, all_ in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        # measured: 4e-6, and 1e-7 for the router's z-loss
        np.testing.assert_allclose(few, all_, atol=2e-5, rtol=1e-5)


def test_every_part_of_the_backbone_learns() -> None:
    """Losses and gradients are finite; only parts that the batch does not use have no gradient."""
    params, batch = random_params(CONFIG), _batch(2, 6)
    objective = conversation_loss.joint_objective(CONFIG)
    learnt = {name: params[name] for name in ("backbone", "speech")}
    buffers = {"router_bias": params["router_bias"]}
    grad = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    totals = objective.totals(batch)
    (loss, sums), grads = grad(learnt, buffers, batch, totals, _keys(2))
    metrics, moved = objective.finish(buffers, sums)
    parts = (
        metrics["text"]
        + conversation_loss.TRANSCRIPT_WEIGHT * metrics["user_transcript"]
        + 0.5 * metrics["flow"]
    )
    parts = parts + conversation_loss.ROUTER_Z_WEIGHT * metrics["router_z"]
    np.testing.assert_allclose(loss, parts, rtol=1e-6)
    assert np.any(moved["router_bias"] != params["router_bias"])
    idle = {name for name, leaf in flatten(grads).items() if not np.any(leaf)}
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    absent = {name for name in flatten(grads) if name.startswith("backbone/video_in/")}
    assert idle == absent


def test_stored_sessions_train_models_with_more_audio_positions() -> None:
    """Two slots a micro-turn, as sessions are stored, on four positions."""
    batch = _batch(2, 6)
    placed = batch["user_transcript"].at[..., ::2].set(Special.NONE)
    stored = placed[..., 1::2]
    params = random_params(CONFIG)
    objective = conversation_loss.conversation_objective(CONFIG)
    learnt, buffers = {"backbone": params["backbone"]}, {"router_bias": params["router_bias"]}

    @jax.jit
    def loss(batch: dict[str, jax.Array]) -> tuple:
        return objective.loss(learnt, buffers, batch, objective.totals(batch), _keys(2))

    found = [loss({**batch, "user_transcript": heard}) for heard in (placed, stored)]
    jax.tree.map(np.testing.assert_array_equal, *found)
