"""The model against an independent PyTorch implementation, with the same parameters.

Largest differences seen in float32: logits and hidden states of values up to 5, 1.1e-5; speech
condition and mel estimate, 3e-6; gradients, 1e-6 of values up to 1; vocoder 0.013 of values up
to 5, since high harmonics multiply the rounding of the pitch.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# ruff: noqa: E402 (the baselines import torch, so they come after this line)
torch = pytest.importorskip("torch", reason="needs the bench extra")

from experiments.baselines import torch_layers, torch_model, torch_stream, torch_vocoder
from interaction import presets
from interaction.config import ModelConfig
from interaction.model import sequence, session_state, streaming, turn_inputs
from interaction.modules import vocoder
from interaction.modules.speech_out import FlowNet, SpeechCondition
from interaction.ops import mel
from interaction.types import Chunk, Special
from tests.support import random_params


def _config(**changes: int) -> ModelConfig:
    """The preset `tiny` whose long layers sharpen scores from 30 keys on, and with changes."""
    tiny = presets.tiny()
    transformer = dataclasses.replace(tiny.transformer, log_scaling_from=30, **changes)
    return dataclasses.replace(tiny, transformer=transformer)


CONFIG = _config()
DENSE = _config(layers=8, long_every=4, dense_layers=1)  # a dense, a sliding and a long layer
SESSIONS, TURNS = 2, 30  # 150 positions: beyond both windows
TOLERANCE, VOCODER_TOLERANCE = 1e-4, 5e-2


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.tree.map(np.asarray, random_params(CONFIG))


@pytest.fixture(scope="module")
def inputs() -> turn_inputs.TurnInputs:
    rng = np.random.default_rng(1)
    shape = (SESSIONS, TURNS, CONFIG.audio.user_frames, CONFIG.audio.mels)
    user, self_audio = rng.integers(0, CONFIG.audio.bins, (2, *shape), np.int32)
    self_audio_gain = rng.integers(0, 2, (SESSIONS, TURNS)).astype(np.float32)
    user_transcript = rng.integers(
        0, CONFIG.vocab, (SESSIONS, TURNS, CONFIG.audio_positions), np.int32
    )
    last = rng.integers(0, CONFIG.vocab, (SESSIONS, TURNS), np.int32)
    return turn_inputs.TurnInputs(user, self_audio, self_audio_gain, user_transcript, last)


def _tensors(inputs: turn_inputs.TurnInputs) -> torch_model.Inputs:
    return torch_model.Inputs(
        *(
            torch.tensor(leaf if leaf.dtype == np.float32 else leaf.astype(np.int64))
            for leaf in inputs[:5]
        )
    )


def _port(params: dict, config: ModelConfig = CONFIG) -> dict:
    return torch_model.port_backbone(params["backbone"], params["router_bias"], config)


def _close(ours: jax.Array, theirs: "torch.Tensor", tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("config", [CONFIG, DENSE], ids=["experts", "dense"])
def test_transformer_equals_torch(config: ModelConfig, inputs: turn_inputs.TurnInputs) -> None:
    params = random_params(config)
    bias = params["router_bias"]
    ours = jax.jit(lambda backbone: sequence.forward(config, backbone, bias, inputs))(
        params["backbone"]
    )
    with torch.inference_mode():
        theirs = torch_model.forward(_port(params, config), config, _tensors(inputs))
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        _close(mine, other)


def test_gradients_equal_torch(params: dict, inputs: turn_inputs.TurnInputs) -> None:
    target = np.random.default_rng(2).integers(0, CONFIG.vocab, (SESSIONS, TURNS))

    def loss(backbone: dict) -> jax.Array:
        out = sequence.forward(CONFIG, backbone, params["router_bias"], inputs)
        logs = jax.nn.log_softmax(out.text_logits)
        return -jnp.mean(jnp.take_along_axis(logs, target[..., None], axis=-1))

    ours = jax.jit(jax.grad(loss))(params["backbone"])
    ported = _port(params)
    parts = [ported["audio_in"], ported["text_in"], ported["heads"], *ported["layers"]]
    for part in parts:
        for name in part.keys() - {"bias"}:
            part[name].requires_grad_()
    logits = torch_model.forward(ported, CONFIG, _tensors(inputs)).text_logits
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(target).flatten()
    ).backward()
    # Gradients of the library, joined as the baseline joins its parameters.
    ours = torch_model.port_backbone(jax.tree.map(np.asarray, ours), params["router_bias"], CONFIG)
    found = [ours["audio_in"], ours["text_in"], ours["heads"], *ours["layers"]]
    for mine, part in zip(found, parts, strict=True):
        for name in part.keys() - {"bias"}:
            _close(mine[name].detach(), part[name].grad, 1e-5)


def test_torch_steps_equal_torch_forward(params: dict, inputs: turn_inputs.TurnInputs) -> None:
    all_turns, ported = _tensors(inputs), _port(params)
    caches = torch_model.Caches(ported, SESSIONS, CONFIG)
    with torch.inference_mode():
        full = torch_model.forward(ported, CONFIG, all_turns)
        for turn in range(TURNS):
            now = slice(turn, turn + 1)
            one = torch_model.Inputs(*(leaf[:, now] for leaf in all_turns))
            logits, _, _ = torch_model.step(ported, caches, CONFIG, one)
            _close(logits, full.text_logits[:, now])


def test_speech_head_equals_torch(params: dict) -> None:
    speech, cfg, rng = params["speech"], CONFIG.speech, np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((SESSIONS, *shape)).astype(np.float32)

    hidden, prefix = draw(CONFIG.transformer.dim), draw(cfg.prefix_frames, CONFIG.audio.mels)
    tokens = rng.integers(0, CONFIG.vocab, (SESSIONS, cfg.token_window), np.int32)
    point = draw(CONFIG.audio.speech_frames, CONFIG.audio.mels)
    time = np.array([0.0, 0.7], np.float32)
    head, flow = {"params": speech["condition"]}, {"params": speech["flow"]}

    @jax.jit
    def ours() -> tuple[jax.Array, jax.Array, jax.Array]:
        features, guess = SpeechCondition(CONFIG).apply(head, hidden, tokens, prefix)
        return features, guess, FlowNet(CONFIG).apply(flow, point, time, features, guess)

    ported, tensor = torch_layers.to_torch(speech), torch.tensor
    features, guess = torch_layers.speech_condition(
        ported["condition"],
        tensor(hidden),
        tensor(tokens).long(),
        tensor(prefix),
        CONFIG.audio.speech_frames,
    )
    estimate = torch_layers.flow_estimate(
        ported["flow"], tensor(point), tensor(time), features, guess, CONFIG
    )
    for mine, other in zip(ours(), (features, guess, estimate), strict=True):
        _close(mine, other)


def test_vocoder_equals_torch(params: dict) -> None:
    cfg, audio, rng = CONFIG.vocoder, CONFIG.audio, np.random.default_rng(4)
    frames = rng.normal(-2.0, 1.0, (SESSIONS, 40, audio.mels)).astype(np.float32)
    ours = jax.jit(lambda p, x: vocoder.vocoder_full(p, x, cfg, audio))(params["vocoder"], frames)
    sessions = torch_vocoder.open_stream(SESSIONS, cfg, audio)
    ported = torch_vocoder.port_vocoder(params["vocoder"], cfg, audio)
    with torch.inference_mode():
        chunks = [
            torch_vocoder.vocoder_step(ported, sessions, torch.tensor(chunk), cfg, audio)
            for chunk in np.split(frames, 8, axis=1)
        ]
    _close(ours, torch.cat(chunks, dim=1), VOCODER_TOLERANCE)


def test_stream_equals_torch(params: dict) -> None:
    """Tokens and PCM of a stream without random noise."""
    config = dataclasses.replace(CONFIG, speech=dataclasses.replace(CONFIG.speech, temperature=0.0))
    rng = np.random.default_rng(5)
    step = jax.jit(lambda state, chunk: streaming.step(config, params, state, chunk))
    state = jax.jit(
        lambda: session_state.init_state(config, session_state.session_keys(jnp.arange(SESSIONS)))
    )()
    theirs = torch_stream.TorchStream(config, params, SESSIONS)
    for _ in range(TURNS):
        pcm = rng.normal(0, 0.1, (SESSIONS, config.audio.turn_samples)).astype(np.float32)
        state, reply = step(state, Chunk(audio=pcm))
        audio, text = theirs.step(pcm)
        np.testing.assert_array_equal(np.asarray(reply.text), text)
        np.testing.assert_array_equal(
            np.asarray(state.user_transcript), theirs.user_transcript.numpy()
        )
        _close(state.mel, theirs.mel, 1e-3)  # measured: 8e-5
        # Random weights amplify rounding errors, and the phase of the pitch accumulates them.
        theirs.mel = torch.tensor(np.asarray(state.mel))
        phase = np.asarray(state.vocoder.source.phase, np.float64) / 2**32
        theirs.vocoder_stream = dataclasses.replace(
            theirs.vocoder_stream, phase=torch.tensor(phase)
        )
        assert np.linalg.norm(reply.audio - audio) < 0.01 * np.linalg.norm(audio)  # measured: 0.003


def test_speech_and_silence_equal_torch(params: dict) -> None:
    """One row is silent and speaks by turns while the other one speaks, then both are silent."""
    config = dataclasses.replace(CONFIG, speech=dataclasses.replace(CONFIG.speech, temperature=0.0))
    speak = jax.jit(functools.partial(streaming.speak, config))
    state = session_state.init_state(config, session_state.session_keys(jnp.arange(2)))
    theirs = torch_stream.TorchStream(config, params, 2)
    keys, kept = jax.random.split(jax.random.key(0), 2), jnp.ones(2, bool)
    hidden = np.random.default_rng(7).normal(size=(2, config.transformer.dim)).astype(np.float32)
    word, silent = Special.COUNT + 3, int(Special.SILENT)
    alone = [(token, word) for token in (silent, word, silent, silent, word)]
    for token, other in [*alone, (silent, silent), (silent, silent), (word, silent), (word, word)]:
        tokens = np.array([token, other])
        state, pcm = speak(params, state, hidden, jnp.asarray(tokens, jnp.int32), keys, kept)
        with torch.inference_mode():
            audio = theirs.speak(torch.tensor(hidden), torch.tensor(tokens)).numpy()
        theirs.mel = torch.tensor(np.asarray(state.mel))
        phase = np.asarray(state.vocoder.source.phase, np.float64) / 2**32
        apart = np.abs(phase - theirs.vocoder_stream.phase.numpy() % 1)
        assert np.all(np.minimum(apart, 1 - apart) < 1e-4)  # cycles; measured: 3e-5
        theirs.vocoder_stream = dataclasses.replace(
            theirs.vocoder_stream, phase=torch.tensor(phase)
        )
        np.testing.assert_array_equal(np.asarray(pcm) == 0, audio == 0)
        assert np.linalg.norm(pcm - audio) <= 0.01 * np.linalg.norm(audio)  # measured: 0.0015
        assert token != silent or not pcm[0, -1]


@pytest.mark.parametrize("side", ["user", "speech"])
def test_mel_equals_torch(side: str) -> None:
    cfg = CONFIG.audio
    spectrum = getattr(cfg, side)
    samples = spectrum.window - spectrum.hop + 8 * spectrum.hop
    pcm = np.random.default_rng(6).normal(0, 0.1, (2, samples)).astype(np.float32)
    theirs = torch_layers.log_mel(
        torch.tensor(pcm),
        torch.tensor(mel.mel_filterbank(spectrum, cfg)),
        torch.hann_window(spectrum.window),
        spectrum,
    )
    _close(mel.log_mel(jnp.asarray(pcm), spectrum, cfg), theirs)
