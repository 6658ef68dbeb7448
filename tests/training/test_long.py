"""Windows of many minutes: attention in blocks, heads in parts, memory linear in the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.model import sequence, turn_inputs
from interaction.ops import block_attention, sequence_attention
from interaction.training import conversation_loss
from interaction.types import Array, Special
from tests.support import SMALLEST, random_params

CONFIG = SMALLEST


def _inputs(sessions: int, turns: int) -> turn_inputs.TurnInputs:
    rng = np.random.default_rng(0)
    shape = (sessions, turns, CONFIG.audio.user_frames, CONFIG.audio.mels)
    heard = (sessions, turns, CONFIG.audio_positions)
    text = rng.integers(0, CONFIG.vocab, (sessions, turns, CONFIG.text_slots))
    return turn_inputs.TurnInputs(
        user=rng.integers(0, CONFIG.audio.bins, shape).astype(np.int32),
        self_audio=rng.integers(0, CONFIG.audio.bins, shape).astype(np.int32),
        self_audio_gain=np.ones((sessions, turns), np.float32),
        user_transcript=rng.integers(0, CONFIG.vocab, heard).astype(np.int32),
        last=rng.integers(0, CONFIG.vocab, (sessions, turns)).astype(np.int32),
        text=np.where(rng.random(text.shape) < 0.2, text, Special.PAD).astype(np.int32),
    )


def _encode(backbone: dict, inputs: turn_inputs.TurnInputs) -> Array:
    bias = jnp.zeros((CONFIG.transformer.layers, CONFIG.transformer.experts))
    return jnp.mean(jnp.square(sequence.encode(CONFIG, backbone, bias, inputs)[0]))


def _close(got: object, wanted: object, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(float(np.max(np.abs(b))), 1e-6)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


def test_attention_in_blocks_equals_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, inputs = random_params(CONFIG)["backbone"], _inputs(2, 30)
    found = []
    for size in (512, 16):  # of queries and of keys; a session has up to 210
        monkeypatch.setattr(sequence_attention, "QUERIES", size)
        monkeypatch.setattr(block_attention, "_SMALLEST_BLOCK", size)
        found.append(jax.jit(jax.value_and_grad(lambda *a: _encode(*a)))(backbone, inputs))
    _close(found[1], found[0], 1e-5)  # measured: 9e-7


def test_heads_in_parts_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = {"heads": random_params(CONFIG)["backbone"]["heads"]}
    rng, positions = np.random.default_rng(1), CONFIG.audio_positions
    tail = jnp.asarray(rng.normal(size=(2, 12, positions + 1, CONFIG.transformer.dim)), jnp.float32)
    text = jnp.asarray(rng.integers(0, CONFIG.vocab, (2, 12)), jnp.int32)
    batch = {"text": text, "user_transcript": jnp.stack([text, text[::-1]] * 2, axis=-1)}
    targets = conversation_loss.make_targets(batch)

    def loss(backbone: dict, tail: Array) -> tuple[Array, object]:
        sums, hidden = conversation_loss.read_losses(CONFIG, backbone, tail, targets)
        return sums["text"] + sums["user_transcript"] + jnp.sum(hidden**2), (sums, hidden)

    found = []
    for logits in (conversation_loss.LOGITS, 40_000):  # there are 123,000
        monkeypatch.setattr(conversation_loss, "LOGITS", logits)
        run = jax.value_and_grad(lambda *a: loss(*a), (0, 1), has_aux=True)
        found.append(jax.jit(run)(backbone, tail))
        assert str(jax.make_jaxpr(run)(backbone, tail)).count("scan[") >= 2 * len(found[1:])
    _close(found[1], found[0], 1e-5)  # measured: 4e-7


def test_memory_grows_with_the_length_not_its_square() -> None:
    """Compiled for 100 and 200 seconds of conversation with text, 3,500 and 7,000 positions."""
    backbone = random_params(CONFIG)["backbone"]

    def temporaries(turns: int) -> int:
        run = jax.jit(jax.value_and_grad(_encode))
        return run.lower(backbone, _inputs(1, turns)).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(500), temporaries(1_000)
    assert long < 2.3 * short, (short, long)
    assert long < 7_000**2 * 4, long  # bytes of the scores of one head
