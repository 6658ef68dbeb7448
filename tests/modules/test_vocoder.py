"""The vocoder: the same result for every chunking, causal, with a known delay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import AudioConfig, VocoderConfig
from interaction.modules import vocoder
from interaction.ops import causal, source_filter
from interaction.training import vocoder_loss

AUDIO = AudioConfig()
CFG = VocoderConfig(dim=16, layers=2)
HOP = AUDIO.speech.hop
FRAMES = 15


@pytest.fixture(scope="module")
def params() -> dict:
    blank = jnp.zeros((1, 1, AUDIO.mels))
    params = jax.jit(vocoder.Vocoder(CFG, AUDIO).init)(jax.random.key(0), blank)["params"]
    # The output of fresh filters depends little on the mel.
    return params | {"filter": 3.0 * params["filter"]}


@pytest.fixture(scope="module")
def frames() -> jax.Array:
    return -2.0 + jax.random.normal(jax.random.key(1), (3, FRAMES, AUDIO.mels))


@jax.jit
def _step(params: dict, state: vocoder.VocoderState, mel: jax.Array) -> tuple:
    return vocoder.vocoder_step(params, state, mel, CFG, AUDIO)


def _stream(params: dict, frames: jax.Array, size: int) -> tuple[vocoder.VocoderState, jax.Array]:
    state, parts = vocoder.init_vocoder_state(frames.shape[0], CFG, AUDIO), []
    for start in range(0, frames.shape[1], size):
        state, part = _step(params, state, frames[:, start : start + size])
        parts.append(part)
    return state, jnp.concatenate(parts, axis=1)


@pytest.mark.optimised
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_chunks_equal_the_whole(params: dict, frames: jax.Array, size: int) -> None:
    full_state, full = _stream(params, frames, FRAMES)
    state, chunks = _stream(params, frames, size)
    assert full.shape == (3, FRAMES * HOP)
    # measured: 0 where samples reach 2
    np.testing.assert_allclose(chunks, full, atol=1e-4 * float(jnp.abs(full).max()))
    np.testing.assert_array_equal(state.source.phase, full_state.source.phase)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(full_state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_gradients_of_chunks_equal_those_of_the_whole(params: dict, frames: jax.Array) -> None:
    def energy(params: dict, size: int) -> jax.Array:
        return jnp.mean(jnp.square(_stream(params, frames[:1, :4], size)[1]))

    grad = jax.jit(jax.grad(energy), static_argnums=1)
    full, chunks = grad(params, 4), grad(params, 2)
    for name in params:  # measured: 3e-7 of the largest
        scale = float(jnp.abs(full[name]).max())
        np.testing.assert_allclose(chunks[name], full[name], atol=1e-5 * scale, err_msg=name)


def test_nothing_comes_from_the_future(params: dict, frames: jax.Array) -> None:
    """Frame i changes samples from i * hop on, and none before."""
    run = jax.jit(lambda mel: vocoder.vocoder_full(params, mel, CFG, AUDIO))
    before, after = run(frames), run(frames.at[:, 5].add(0.5))
    np.testing.assert_array_equal(before[:, : 5 * HOP], after[:, : 5 * HOP])
    assert jnp.any(before[:, 5 * HOP : 6 * HOP] != after[:, 5 * HOP : 6 * HOP])


@pytest.mark.optimised
def test_rows_do_not_see_each_other(params: dict, frames: jax.Array) -> None:
    both = _stream(params, frames, FRAMES)[1]
    alone = _stream(params, frames[1:2], FRAMES)[1]
    # measured: 0 where samples reach 2
    np.testing.assert_allclose(both[1:2], alone, atol=1e-4 * float(jnp.abs(both).max()))


@pytest.mark.optimised
def test_module_is_the_pure_function(params: dict, frames: jax.Array) -> None:
    got = jax.jit(vocoder.Vocoder(CFG, AUDIO).apply)({"params": params}, frames)
    wanted = _stream(params, frames, FRAMES)[1]
    np.testing.assert_array_equal(got, wanted)


def test_size_of_the_default() -> None:
    cfg = VocoderConfig()
    blank = jax.ShapeDtypeStruct((1, 1, AUDIO.mels), jnp.float32)
    shapes = jax.eval_shape(vocoder.Vocoder(cfg, AUDIO).init, jax.random.key(0), blank)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 985_952


def test_pitch_decodes_between_classes() -> None:
    grid = vocoder.pitch_grid(CFG)
    wanted = jnp.array([110.0, 173.3, 251.0])
    classes = jnp.log(wanted)[:, None] - jnp.log(grid)
    logits = -0.5 * jnp.square(classes / jnp.log(grid[1] / grid[0]))
    np.testing.assert_allclose(
        vocoder.decode_pitch(logits, CFG), wanted, rtol=5e-3
    )  # measured: 8e-4


def test_pulses_follow_the_pitch() -> None:
    """A constant pitch through flat filters is a pulse train of that pitch and of unit power."""
    pitch, frames = 160.0, 40
    state = source_filter.init_state(1, 4, HOP, 512, pitch)
    cepstra = jnp.zeros((1, frames, 2, 4)).at[:, :, 1, 0].set(-18.0)
    rate = AUDIO.sample_rate
    _, pcm = source_filter.synthesise(state, jnp.full((1, frames), pitch), cepstra, HOP, rate)
    steady = pcm[:, 4 * HOP :]
    period = round(rate / pitch)
    np.testing.assert_allclose(
        steady[:, period:], steady[:, :-period], atol=0.01
    )  # measured: 1e-4 of 10
    np.testing.assert_allclose(jnp.mean(jnp.square(steady)), 1.0, rtol=0.02)


@pytest.mark.optimised
def test_overlap_add_of_chunks_is_exact() -> None:
    frames = jax.random.normal(jax.random.key(0), (2, 6, 13))
    wanted = np.zeros((2, 5 * 4 + 13), np.float32)
    for i in range(6):
        wanted[:, i * 4 : i * 4 + 13] += frames[:, i]
    tail, full = causal.overlap_add(jnp.zeros((2, 9)), frames, 4)
    np.testing.assert_allclose(jnp.concatenate([full, tail], axis=1), wanted, atol=1e-6)
    part, parts = jnp.zeros((2, 9)), []
    for i in range(6):
        part, out = causal.overlap_add(part, frames[:, i : i + 1], 4)
        parts.append(out)
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), full)
    np.testing.assert_array_equal(part, tail)


def test_estimated_pitch_of_a_voice() -> None:
    seconds = np.arange(16_000) / 16_000
    hertz = 180.0 + 30.0 * np.sin(2 * np.pi * 1.5 * seconds)
    phase = 2 * np.pi * np.cumsum(hertz) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)).astype(np.float32)
    pcm = jnp.asarray(np.pad(0.1 * voice, (600, 0)))[None]
    pitch, peak = vocoder_loss.estimate_pitch(pcm, HOP, VocoderConfig(), AUDIO)
    centres = (np.arange(pitch.shape[1]) + 1) * HOP - AUDIO.speech.window // 2
    inside = slice(4, -1)
    # measured: 5e-4
    np.testing.assert_allclose(pitch[0, inside], hertz[centres[inside]], rtol=5e-3)
    assert jnp.all(peak[0, inside] > 0.9)


def test_spectral_losses_of_equal_and_shifted_noise() -> None:
    pcm = 0.1 * jax.random.normal(jax.random.key(0), (1, 8_000))
    same = vocoder_loss.spectral_losses(pcm, pcm)
    np.testing.assert_allclose(same, 0.0, atol=1e-6)
    other = vocoder_loss.spectral_losses(jnp.roll(pcm, 400), pcm)
    assert all(value > 0.1 for value in other)


def test_training_lowers_the_loss(params: dict) -> None:
    samples = AUDIO.speech.window - HOP + 24 * HOP
    seconds = jnp.arange(samples) / AUDIO.sample_rate
    voice = sum(jnp.sin(2 * jnp.pi * 150.0 * k * seconds) / k for k in range(1, 9))
    crops = 0.1 * voice[None]

    def loss(params: dict) -> jax.Array:
        return vocoder_loss.crop_loss(params, crops, jax.random.key(0), CFG, AUDIO)[0]

    step = jax.jit(jax.value_and_grad(loss))
    first, _ = step(params)
    for _ in range(15):
        value, grads = step(params)
        params = jax.tree.map(lambda p, g: p - 3e-3 * jnp.sign(g), params, grads)
    assert jnp.isfinite(value) and value < 0.8 * first


def test_crops_prefer_sound() -> None:
    pcm = jnp.zeros((2, 32_000)).at[:, 20_000:24_000].set(0.3)
    crops = vocoder_loss.pick_crops(pcm, 4_000, 50, HOP, jax.random.key(0))
    assert crops.shape == (100, 4_000)
    assert jnp.mean(jnp.max(crops, axis=1) > 0) > 0.9
