"""Causal log-mel spectrogram, the same for complete clips and for streams.

Frame i is the magnitude spectrum of the `window` samples that end at sample (i + 1) * hop, so a
stream carries only its last `window - hop` samples. Spectra are computed in tiles of a fixed number
of frames, so a frame's bits depend neither on the chunking nor on the batch. Tiles are cut out of
the signal one at a time, so the overlapping frames are never all in memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import AudioConfig, SpectrumConfig
from interaction.ops.dense import dense
from interaction.types import Array

FLOOR = 1e-10  # smallest mel magnitude before log10
_TILE = 16  # frames of one session whose spectra are computed at a time
_UNREACHED = 2 * float(np.log10(FLOOR))
_LEAST_POWER = 1e-30  # floor of the power, without which the gradient of silence is NaN
_LINEAR_HZ = 200.0 / 3.0  # Hz per mel below the break (Slaney, Auditory Toolbox, 1998)
_BREAK_HZ = 1_000.0
_LOG_STEP = np.log(6.4) / 27.0  # log Hz per mel above the break


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ / _LINEAR_HZ + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_HZ, above)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_HZ / _LINEAR_HZ))
    return np.where(mel < _BREAK_HZ / _LINEAR_HZ, mel * _LINEAR_HZ, above)


@functools.cache
def mel_filterbank(spectrum: SpectrumConfig, cfg: AudioConfig) -> np.ndarray:
    """Triangular filters on the Slaney mel scale with unit area, as librosa's default.

    Args:
      spectrum: Configuration of the frames, of which `n_fft`, `fmin` and `fmax` are used.
      cfg: Configuration of the front ends, of which `sample_rate` and `mels` are used.

    Returns:
      float32[n_fft // 2 + 1, mels], read-only, in 1/Hz.
    """
    bins = np.arange(spectrum.n_fft // 2 + 1) * (cfg.sample_rate / spectrum.n_fft)
    low, high = _hz_to_mel(np.array([spectrum.fmin, spectrum.fmax]))
    edges = _mel_to_hz(np.linspace(low, high, cfg.mels + 2))
    rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (edges[2:] - edges[:-2]))
    bank = bank.astype(np.float32)
    bank.setflags(write=False)
    return bank


def hann(length: int) -> np.ndarray:
    """Periodic Hann window, float32[length], `length` in samples."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)).astype(np.float32)


def _frames(samples: int, window: int, hop: int) -> int:
    frames, rest = divmod(samples - (window - hop), hop)
    if rest or frames < 1:
        raise ValueError(
            f"pcm: got {samples} samples, wanted {window - hop} of left context plus a positive"
            f" multiple of hop={hop}; pad or cut the signal"
        )
    return frames


def frame(pcm: Array, window: int, hop: int) -> Array:
    """Overlapping frames, by slices and one concatenation instead of a gather.

    Args:
      pcm: float32[b, window - hop + frames * hop], the left context first.
      window: Samples of a frame, >= hop.
      hop: Samples between frames.

    Returns:
      float32[b, frames, window]; frame i is `pcm[:, i * hop : i * hop + window]`.

    Raises:
      ValueError: `pcm` is not the context and at least one complete hop.
    """
    b, samples = pcm.shape
    frames = _frames(samples, window, hop)
    hops = -(-window // hop)  # hops that a window overlaps
    pcm = jnp.pad(pcm, ((0, 0), (hops * hop - window, 0)))
    blocks = pcm.reshape(b, frames + hops - 1, hop)
    stacked = jnp.concatenate([blocks[:, i : i + frames] for i in range(hops)], axis=-1)
    return stacked[..., hops * hop - window :]


def log_mel(pcm: Array, spectrum: SpectrumConfig, cfg: AudioConfig) -> Array:
    """Log-mel frames of PCM with its left context.

    Args:
      pcm: float[b, window - hop + frames * hop] in [-1, 1]; the first `window - hop` samples are
        context, zeros at the start of a stream.
      spectrum: Configuration of the frames.
      cfg: Configuration of the front ends.

    Returns:
      float32[b, frames, mels], log10 of the mel-weighted magnitude, at least log10(FLOOR).

    Raises:
      ValueError: `pcm` is not the context and at least one complete hop.
    """
    # The window ends with the transform: zeros in front of it change the phases only.
    hop, n_fft, ahead = spectrum.hop, spectrum.n_fft, spectrum.n_fft - spectrum.window
    window, bank = np.pad(hann(spectrum.window), (ahead, 0)), mel_filterbank(spectrum, cfg)
    b, samples = pcm.shape
    frames = _frames(samples, spectrum.window, hop)
    tiles = -(-frames // _TILE)
    reach = (_TILE - 1) * hop + n_fft  # samples of a tile
    pcm = jnp.pad(pcm.astype(jnp.float32), ((0, 0), (ahead, (tiles * _TILE - frames) * hop)))

    def tile(place: tuple[Array, Array]) -> Array:
        piece = jax.lax.dynamic_slice(pcm, place, (1, reach))
        spectrum = jnp.fft.rfft(frame(piece, n_fft, hop)[0] * window)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        magnitude = jnp.sqrt(jnp.maximum(power, _LEAST_POWER))
        mel = jnp.log10(jnp.maximum(dense(magnitude, jnp.asarray(bank)), FLOOR))
        # A limit that is never reached: without it compilers fuse the last product of the logarithm
        # with what reads it, in some programs and not in others, and a level of dMel may change.
        return jnp.maximum(mel, _UNREACHED)

    row, first = np.divmod(np.arange(b * tiles), tiles)
    mel = jax.lax.map(tile, (row, first * _TILE * hop))
    return mel.reshape(b, tiles * _TILE, cfg.mels)[:, :frames]


def init_tail(batch: int, spectrum: SpectrumConfig) -> Array:
    """Left context of a fresh stream: zeros, float32[batch, window - hop] samples."""
    return jnp.zeros((batch, spectrum.window - spectrum.hop), jnp.float32)


def log_mel_stream(
    tail: Array, pcm: Array, spectrum: SpectrumConfig, cfg: AudioConfig
) -> tuple[Array, Array]:
    """Log-mel frames of the next samples of a stream.

    Args:
      tail: float32[b, window - hop], the samples before `pcm`; see `init_tail`.
      pcm: float[b, frames * hop] in [-1, 1].
      spectrum: Configuration of the frames.
      cfg: Configuration of the front ends.

    Returns:
      The new tail, and float32[b, frames, mels] in log10 magnitude, one frame for each hop of
      `pcm`.

    Raises:
      ValueError: `pcm` is not a positive multiple of `hop`.
    """
    joined = jnp.concatenate([tail, pcm.astype(jnp.float32)], axis=1)
    return joined[:, joined.shape[1] - tail.shape[1] :], log_mel(joined, spectrum, cfg)
