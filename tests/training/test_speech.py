"""The flow head's training."""

import jax
import jax.numpy as jnp
import numpy as np

from interaction import presets
from interaction.model import init_speech
from interaction.training import features, speech
from interaction.types import Special

CONFIG = presets.tiny()


def test_spliced_windows_keep_their_newer_half() -> None:
    tokens = jnp.arange(2_000 * 12).reshape(2_000, 12)
    got = np.asarray(jax.jit(speech.spliced)(tokens, jax.random.key(0)))
    wanted = np.asarray(tokens)
    np.testing.assert_array_equal(got[:, 6:], wanted[:, 6:])
    other = got != wanted
    np.testing.assert_array_equal(got[other], np.roll(wanted, 1, axis=0)[other])
    assert (np.diff(other.astype(int), axis=1) <= 0).all(), "the older part is one piece"
    assert abs(other[:, 0].mean() - speech.SPLICED) < 0.05
    assert 0 < other[:, 5].sum() < other[:, 0].sum()


def _batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    turns = 8
    model = rng.integers(-9_000, 9_000, (2, turns * CONFIG.audio.turn_samples))
    text = np.full((2, turns), Special.SILENT)
    text[:, 2:5] = rng.integers(Special.COUNT, CONFIG.vocab, (2, 3))
    return {"model": jnp.asarray(model, jnp.int16), "text": jnp.asarray(text, jnp.int32)}


def test_flow_loss_looks_at_speech_only() -> None:
    """What stands in silent micro-turns changes nothing; what is said does."""
    batch, key = _batch(), jax.random.key(3)
    shapes = jax.eval_shape(lambda: init_speech(CONFIG, jax.random.key(1)))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    hidden = jnp.zeros((*batch["text"].shape, CONFIG.transformer.dim))

    @jax.jit
    def loss(mel: jax.Array) -> jax.Array:
        return speech.flow_loss(CONFIG, params, hidden, batch, mel, key)

    mel = features.speech_mel(batch, CONFIG)
    value = float(loss(mel))
    # Guess and estimate are zero: each misses by the power of the standardised mel.
    target = (np.asarray(mel[:, 2:5]) - CONFIG.speech.mel_mean) / CONFIG.speech.mel_std
    assert abs(value / (2 * np.mean(np.square(target))) - 1) < 0.1
    assert float(loss(mel.at[:, 6].add(3.0))) == value
    assert float(loss(mel.at[:, 3].add(1.0))) != value
