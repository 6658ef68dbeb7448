"""Noise, rooms and microphones for mixed sessions; all signals are at 16 kHz."""

import functools

import numpy as np
import scipy.signal

from interaction.data.clips import RATE

NOISES = ("white", "pink", "brown", "hum")  # hum: 50 Hz with harmonics, over pink noise
_NOISE_SECONDS = 20


@functools.cache
def noise_bank() -> dict[str, np.ndarray]:
    """All noises, the same in every process.

    Returns:
      By name, float32[samples] of 20 s with a root mean square of 1. White, pink and brown noise
      have a power spectrum of 1, 1/f and 1/f^2 above 30 Hz.
    """
    rng = np.random.default_rng(7)
    samples = _NOISE_SECONDS * RATE
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 30.0)
    bank = {
        name: np.fft.irfft(spectrum / hertz**slope, samples)
        for name, slope in (("white", 0.0), ("pink", 0.5), ("brown", 1.0))
    }
    time = np.arange(samples) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time + k * k) / k for k in range(1, 9))
    bank["hum"] = hum + 0.3 * bank["pink"] / bank["pink"].std()
    return {name: (wave / wave.std()).astype(np.float32) for name, wave in bank.items()}


def noise(rng: np.random.Generator, kind: str, samples: int, rms: float) -> np.ndarray:
    """A stretch of noise that starts at a random place of the bank.

    Args:
      rng: Source of the random place.
      kind: One of `NOISES`.
      samples: Length.
      rms: Root mean square of the result; 1 is full scale.

    Returns:
      float32[samples].
    """
    wave = noise_bank()[kind]
    start = int(rng.integers(len(wave)))
    index = np.arange(start, start + samples) % len(wave)
    return wave[index] * np.float32(rms)


def reverberate(rng: np.random.Generator, pcm: np.ndarray) -> np.ndarray:
    """Adds the reverberation of a room: decaying noise that lasts 0.12 to 0.35 s.

    Args:
      rng: Source of the tail, its length and its level.
      pcm: float32[samples], 16 kHz.

    Returns:
      float32[samples]; what lasts longer than `pcm` is cut off.
    """
    samples = int(rng.uniform(0.12, 0.35) * RATE)
    decay = np.exp(-6.9 * np.arange(samples) / samples)  # 60 dB over the tail
    tail = rng.standard_normal(samples) * decay
    tail *= rng.uniform(0.2, 0.5) / np.sqrt(np.square(tail).sum())
    tail[: int(0.004 * RATE)] = 0.0
    tail[0] = 1.0
    return scipy.signal.oaconvolve(pcm, tail.astype(np.float32))[: len(pcm)].astype(np.float32)


def tilt(pcm: np.ndarray, amount: float) -> np.ndarray:
    """Colours speech like a microphone, with a one-tap filter: y[n] = x[n] + amount x[n - 1].

    Args:
      pcm: float32[samples], x.
      amount: Above 0 it lowers high frequencies, below 0 it lowers low ones.

    Returns:
      float32[samples], y.
    """
    out = pcm.copy()
    out[1:] += np.float32(amount) * pcm[:-1]
    return out
