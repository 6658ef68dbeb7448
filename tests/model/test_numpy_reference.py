"""The transformer and the flow head equal their NumPy reference, see `tests.numpy_model`."""

import dataclasses

import jax
import numpy as np
import pytest

from interaction import presets
from interaction.model import sequence
from interaction.model.turn_inputs import TurnInputs
from interaction.modules import speech_out
from interaction.types import Params, Special
from tests import numpy_model
from tests.support import random_params

TINY = presets.tiny()
CONFIG = dataclasses.replace(
    TINY, transformer=dataclasses.replace(TINY.transformer, logits_divisor=3.0)
)
SESSIONS, TURNS = 2, 18  # more positions than the windows of 20 and 40 keys and the first 16


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_params(CONFIG))


@pytest.fixture(scope="module")
def inputs() -> TurnInputs:
    """Text and frames that come and go, blanked self audio, and a session that ends early."""
    rng = np.random.default_rng(0)
    shape, size = (SESSIONS, TURNS), CONFIG.frame_size
    frames = (*shape, CONFIG.audio.user_frames, CONFIG.audio.mels)

    def tokens(*more: int) -> np.ndarray:
        return rng.integers(1, CONFIG.vocab, (*shape, *more), np.int32)

    text = tokens(CONFIG.text_slots)
    exists = np.ones(shape, bool)
    exists[1, 15:] = False
    return TurnInputs(
        user=rng.integers(0, 16, frames, np.int32),
        self_audio=rng.integers(0, 16, frames, np.int32),
        self_audio_gain=rng.integers(0, 2, shape).astype(np.float32),
        user_transcript=tokens(CONFIG.audio_positions),
        last=tokens(),
        text=np.where(rng.random(text.shape) < 0.6, Special.PAD, text).astype(np.int32),
        frame=rng.random((*shape, 2, size, size, 3), np.float32),
        has_frame=rng.random(shape) < 0.4,
        exists=exists,
    )


def test_the_transformer(params: Params, inputs: TurnInputs) -> None:
    backbone, bias = params["backbone"], params["router_bias"]
    run = jax.jit(lambda p, b, inputs: sequence.forward(CONFIG, p, b, inputs))
    released = random_params(CONFIG)
    found = jax.device_get(run(released["backbone"], released["router_bias"], inputs))
    for session in range(SESSIONS):
        one = TurnInputs(*(leaf[session] for leaf in inputs))
        wanted = numpy_model.forward(CONFIG, backbone, bias, one)
        assert sorted(wanted) == list(range(TURNS - 3 * session))
        for turn, outputs in wanted.items():
            for name, value in zip(
                ("text_logits", "transcript_logits", "hidden"), outputs, strict=True
            ):
                # Largest difference seen: 4.7e-6 of values up to 5.
                np.testing.assert_allclose(
                    getattr(found, name)[session, turn],
                    value,
                    atol=5e-5,
                    rtol=0,
                    err_msg=f"{name} of session {session}, micro-turn {turn}",
                )


def test_the_flow_head(params: Params) -> None:
    """Mel frames of one micro-turn from hidden state, tokens, the frames before it and noise."""
    cfg, audio, rng = CONFIG.speech, CONFIG.audio, np.random.default_rng(1)
    hidden = rng.standard_normal((SESSIONS, CONFIG.transformer.dim)).astype(np.float32)
    tokens = rng.integers(0, CONFIG.vocab, (SESSIONS, cfg.token_window), np.int32)
    prefix = rng.normal(-3, 2, (SESSIONS, cfg.prefix_frames, audio.mels)).astype(np.float32)
    noise = rng.standard_normal((SESSIONS, audio.speech_frames, audio.mels)).astype(np.float32)
    run = jax.jit(lambda *given: speech_out.generate_mel(CONFIG, *given))
    found = run(random_params(CONFIG)["speech"], hidden, tokens, prefix, noise)
    for session in range(SESSIONS):
        given = (x[session] for x in (hidden, tokens, prefix, noise))
        wanted = numpy_model.generate_mel(CONFIG, params["speech"], *given)
        assert 0.05 < np.mean(wanted == cfg.mel_floor) < 0.5, "the floor is reached, now and then"
        # Largest difference seen: 5e-5 of values up to 5.
        np.testing.assert_allclose(found[session], wanted, atol=5e-4, rtol=0)
