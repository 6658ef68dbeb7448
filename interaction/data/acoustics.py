"""Noise, rooms and microphones for mixed sessions; precomputed where it can be."""

import functools

import numpy as np
import scipy.signal

from interaction.data.clips import RATE

NOISES = ("white", "pink", "brown", "hum")
_NOISE_SECONDS = 20


@functools.cache
def noise_bank() -> dict[str, np.ndarray]:
    """Noises, float32[samples] each, of unit root mean square; the same in every process."""
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
    """Noise from a random place of the bank, float32[samples] of root mean square `rms`."""
    wave = noise_bank()[kind]
    start = int(rng.integers(len(wave)))
    index = np.arange(start, start + samples) % len(wave)
    return wave[index] * np.float32(rms)


def reverberate(rng: np.random.Generator, pcm: np.ndarray) -> np.ndarray:
    """Adds a short diffuse room tail of 0.12 to 0.35 s to float32[samples]."""
    samples = int(rng.uniform(0.12, 0.35) * RATE)
    decay = np.exp(-6.9 * np.arange(samples) / samples)  # 60 dB over the tail
    tail = rng.standard_normal(samples) * decay
    tail *= rng.uniform(0.2, 0.5) / np.sqrt(np.square(tail).sum())
    tail[: int(0.004 * RATE)] = 0.0
    tail[0] = 1.0
    return scipy.signal.oaconvolve(pcm, tail.astype(np.float32))[: len(pcm)].astype(np.float32)


def tilt(pcm: np.ndarray, amount: float) -> np.ndarray:
    """Colours float32[samples] with a one-tap filter: above 0 darker, below 0 brighter."""
    out = pcm.copy()
    out[1:] += np.float32(amount) * pcm[:-1]
    return out
