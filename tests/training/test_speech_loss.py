"""Training of the flow head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.training import features, speech_loss
from interaction.types import Special
from tests.support import random_params

CONFIG = presets.tiny()


def test_spliced_windows_keep_their_newer_half() -> None:
    tokens = jnp.arange(2_000 * 12).reshape(2_000, 12)
    got = np.asarray(jax.jit(speech_loss.spliced)(tokens, jax.random.key(0)))
    wanted = np.asarray(tokens)
    np.testing.assert_array_equal(got[:, 6:], wanted[:, 6:])
    other = got != wanted
    np.testing.assert_array_equal(got[other], np.roll(wanted, 1, axis=0)[other])
    assert (np.diff(other.astype(int), axis=1) <= 0).all(), "the older part is one piece"
    assert abs(other[:, 0].mean() - speech_loss.SPLICED) < 0.05
    assert 0 < other[:, 5].sum() < other[:, 0].sum()


def _batch(spoken: tuple[int, ...]) -> dict[str, jax.Array]:
    """Two sessions of 8 micro-turns with speech in `spoken`, fewer than a batch has room for."""
    rng = np.random.default_rng(0)
    turns = 8
    model = rng.integers(-9_000, 9_000, (2, turns * CONFIG.audio.turn_samples))
    text = np.full((2, turns), Special.SILENT)
    text[:, spoken] = rng.integers(Special.COUNT, CONFIG.vocab, (2, len(spoken)))
    assert 2 * len(spoken) < speech_loss.SPEAKING_SHARE * text.size
    return {"model": jnp.asarray(model, jnp.int16), "text": jnp.asarray(text, jnp.int32)}


def _loss(params: dict, batch: dict[str, jax.Array]) -> Callable[[jax.Array], float]:
    hidden = jnp.zeros((*batch["text"].shape, CONFIG.transformer.dim))
    totals, keys = speech_loss.flow_totals(batch), jax.random.split(jax.random.key(3), 2)
    run = jax.jit(
        lambda mel: speech_loss.flow_loss(CONFIG, params, hidden, batch, mel, totals, keys)
    )
    return lambda mel: float(run(mel))


def test_flow_loss_of_silent_micro_turns_is_not_counted() -> None:
    batch = _batch((2, 3))
    params = jax.tree.map(jnp.zeros_like, random_params(CONFIG)["speech"])
    loss, mel = _loss(params, batch), features.speech_mel(batch, CONFIG)
    value = loss(mel)
    # Guess and estimate are zero, so each error is the power of the standardised mel: one over all
    # rows with speech, one over the row that trains the flow. Measured: 0.0002 apart.
    target = (np.asarray(mel[:, 2:4]) - CONFIG.speech.mel_mean) / CONFIG.speech.mel_std
    assert abs(value / (2 * np.mean(np.square(target))) - 1) < 0.1
    assert loss(mel.at[:, 6].add(3.0)) == value
    assert loss(mel.at[:, 3].add(1.0)) != value


def test_own_guess_precedes_a_micro_turn_that_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames two micro-turns back matter through the guess, unless silence lies between."""
    params = random_params(CONFIG)["speech"]
    alone, running = _batch((4,)), _batch((4, 5))
    mel = {id(batch): features.speech_mel(batch, CONFIG) for batch in (alone, running)}
    values = {}
    for rate in (0.0, 1.0):
        monkeypatch.setattr(speech_loss, "SELF_FED", rate)
        for batch in (alone, running):
            values[rate, id(batch)] = _loss(params, batch)(mel[id(batch)])
    assert values[0.0, id(alone)] == values[1.0, id(alone)]
    assert values[0.0, id(running)] != values[1.0, id(running)]
    loss, frames = _loss(params, alone), mel[id(alone)]
    value = loss(frames)
    assert loss(frames.at[:, 2].add(1.0)) == value
    assert loss(frames.at[:, 3].add(1.0)) != value


def test_the_condition_is_the_hidden_state_of_the_same_micro_turn() -> None:
    """Only what is said depends on a hidden state, and on that of its own micro-turn alone."""
    spoken = (2, 5)
    batch, params = _batch(spoken), random_params(CONFIG)["speech"]
    totals, keys = speech_loss.flow_totals(batch), jax.random.split(jax.random.key(3), 2)
    mel = features.speech_mel(batch, CONFIG)

    def loss(hidden: jax.Array) -> jax.Array:
        return speech_loss.flow_loss(CONFIG, params, hidden, batch, mel, totals, keys)

    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2, 8, CONFIG.transformer.dim)).astype(np.float32)
    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run(hidden)
    wanted = np.isin(np.arange(8), spoken)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=(0, 2)), wanted)
    for turn in range(8):
        moved = hidden.copy()
        moved[:, turn] += 1.0
        assert (run(moved)[0] != value) == wanted[turn], turn
