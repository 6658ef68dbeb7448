"""The mel front end against librosa; needs the `parity` extra, see `make parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import AudioConfig, SpectrumConfig
from interaction.ops import mel

librosa = pytest.importorskip("librosa", reason="needs the parity extra")
CFG = AudioConfig()
SPECTRA = (CFG.user, CFG.speech, SpectrumConfig(800, 1_600, 1_600, 0.0, 8_000.0))


def test_filterbank_equals_librosa() -> None:
    wanted = librosa.filters.mel(
        sr=CFG.sample_rate,
        n_fft=CFG.user.n_fft,
        n_mels=CFG.mels,
        fmin=CFG.user.fmin,
        fmax=CFG.user.fmax,
    ).T
    # measured: 2e-9 on values up to 0.03
    np.testing.assert_allclose(mel.mel_filterbank(CFG.user, CFG), wanted, atol=1e-8)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_log_mel_equals_librosa(spectrum: SpectrumConfig) -> None:
    pcm = np.asarray(0.1 * jax.random.normal(jax.random.key(0), (1, 16_000)))
    hop = spectrum.hop
    padded = np.pad(pcm[0], (spectrum.window - hop, 0))
    # librosa centres the window in n_fft samples; the shift does not change magnitudes.
    side = (spectrum.n_fft - spectrum.window) // 2
    magnitude = librosa.feature.melspectrogram(
        y=np.pad(padded, side),
        sr=CFG.sample_rate,
        n_fft=spectrum.n_fft,
        hop_length=hop,
        win_length=spectrum.window,
        center=False,
        power=1.0,
        n_mels=CFG.mels,
        fmin=spectrum.fmin,
        fmax=spectrum.fmax,
    ).T
    wanted = np.log10(np.maximum(magnitude, mel.FLOOR))
    got = mel.log_mel_stream(mel.init_tail(1, spectrum), jnp.asarray(pcm), spectrum, CFG)[1][0]
    # measured: 2.4e-7
    np.testing.assert_allclose(got, wanted, atol=2e-6)
