"""Mel front end: equal to its formula, and the same for every chunking and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import AudioConfig, SpectrumConfig
from interaction.distributed.xla_options import compiler_options
from interaction.ops import mel

CFG = AudioConfig()
SPECTRA = (CFG.user, CFG.speech, SpectrumConfig(800, 1_600, 1_600, 0.0, 8_000.0))


def _noise(batch: int, samples: int, seed: int = 0) -> jax.Array:
    return 0.1 * jax.random.normal(jax.random.key(seed), (batch, samples))


def test_filterbank_golden() -> None:
    """Values of librosa 0.11; all of them: `test_librosa_parity`."""
    golden = {
        (7, 0): 0.02312933,
        (34, 12): 0.01858211,
        (108, 39): 0.01531499,
        (320, 69): 0.00323258,
        (480, 79): 0.00135403,
    }
    bank = mel.mel_filterbank(CFG.user, CFG)
    for at, value in golden.items():
        np.testing.assert_allclose(bank[at], value, atol=1e-8)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_log_mel_equals_numpy(spectrum: SpectrumConfig) -> None:
    """The formula in float64: a periodic Hann window, magnitudes of the transform, filters."""
    pcm = np.asarray(_noise(1, 16_000))
    hop, size = spectrum.hop, spectrum.window
    padded = np.pad(pcm[0].astype(np.float64), (size - hop, 0))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectra = np.abs(np.fft.rfft(frames * hann, spectrum.n_fft))
    magnitude = spectra @ mel.mel_filterbank(spectrum, CFG)
    wanted = np.log10(np.maximum(magnitude, mel.FLOOR))
    got = mel.log_mel_stream(mel.init_tail(1, spectrum), jnp.asarray(pcm), spectrum, CFG)[1][0]
    # measured: 2.4e-7
    np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.optimised
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("hops", [1, 2, 3, 5, 8])
def test_chunking_and_batch_keep_the_bits(spectrum: SpectrumConfig, hops: int) -> None:
    hop = spectrum.hop
    step = jax.jit(lambda tail, pcm: mel.log_mel_stream(tail, pcm, spectrum, CFG))
    pcm = _noise(3, 120 * hop)
    full = step(mel.init_tail(3, spectrum), pcm)[1]
    for rows in (slice(0, 1), slice(1, 3)):
        chunks, tail = [], mel.init_tail(3, spectrum)[rows]
        for start in range(0, pcm.shape[1], hops * hop):
            tail, chunk = step(tail, pcm[rows, start : start + hops * hop])
            chunks.append(chunk)
        np.testing.assert_array_equal(jnp.concatenate(chunks, axis=1), full[rows])


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_frame_ends_with_its_hop(spectrum: SpectrumConfig) -> None:
    """A sample changes exactly the frames whose window holds it."""
    hop = spectrum.hop
    pcm = _noise(1, 20 * hop)
    at = 6 * hop + 3
    run = jax.jit(lambda p: mel.log_mel_stream(mel.init_tail(1, spectrum), p, spectrum, CFG)[1])
    changed = jnp.any(run(pcm) != run(pcm.at[0, at].add(0.5)), axis=(0, 2))
    ends = (np.arange(20) + 1) * hop
    np.testing.assert_array_equal(changed, (ends > at) & (ends - spectrum.window <= at))


def test_silence_is_the_floor() -> None:
    samples = CFG.user.window - CFG.user.hop + 3 * CFG.user.hop
    frames = mel.log_mel(jnp.zeros((1, samples)), CFG.user, CFG)
    assert frames.shape == (1, 3, CFG.mels)
    np.testing.assert_allclose(frames, np.log10(mel.FLOOR))


def test_window_that_is_no_multiple_of_the_hop() -> None:
    pcm = _noise(2, 100 + 7 * 300)
    got = mel.frame(pcm, 400, 300)
    wanted = jnp.stack([pcm[:, i * 300 : i * 300 + 400] for i in range(7)], axis=1)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("frames", [1, 8, 53])
@pytest.mark.parametrize("loudness", [0.0, 0.1])
def test_gradient_is_finite_at_the_end_and_in_silence(frames: int, loudness: float) -> None:
    pcm = loudness * _noise(1, CFG.speech.window - 200 + frames * 200)
    grad = jax.grad(lambda x: jnp.mean(mel.log_mel(x, CFG.speech, CFG)))(pcm)
    assert np.all(np.isfinite(grad)) and np.any(grad) == bool(loudness)


def test_part_of_a_hop_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of hop=400"):
        mel.log_mel_stream(mel.init_tail(1, CFG.user), jnp.zeros((1, 3_300)), CFG.user, CFG)


@pytest.mark.optimised
def test_frames_are_rounded_before_they_are_read() -> None:
    """A fused product and difference would give what was rounded off."""
    options = compiler_options("cpu")

    def frames(pcm: jax.Array) -> jax.Array:
        return mel.log_mel_stream(mel.init_tail(1, CFG.user), pcm, CFG.user, CFG)[1]

    pcm = _noise(1, CFG.turn_samples)
    alone = jax.jit(frames, compiler_options=options)(pcm)
    rest = jax.jit(lambda pcm, known: frames(pcm) - known, compiler_options=options)(pcm, alone)
    assert not np.any(rest)
