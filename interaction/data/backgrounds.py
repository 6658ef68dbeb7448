"""Sounds behind a user: other people, machines, keys, music; all signals are at 16 kHz.

Each kind of `BACKGROUNDS` is a function of a generator and a number of samples; training has none
of the held-out kinds. Noises by their spectrum, which all splits share, are in `acoustics`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.signal

from interaction.data import acoustics, clips
from interaction.data.clips import RATE


def mix(pcm: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Adds noise to speech at a signal-to-noise ratio.

    Args:
      pcm: float32[samples], speech; its level is that of its audible frames, see `clips.level`.
      noise: float32[samples], not silent; its level is its root mean square.
      snr_db: Level of the speech above the noise, dB.

    Returns:
      float32[samples]. Peaks may pass full scale.
    """
    gain = clips.level(pcm) / _rms(noise) * 10 ** (-snr_db / 20)
    return (pcm + gain * noise).astype(np.float32)


def babble(
    rng: np.random.Generator, speech: Sequence[np.ndarray], talkers: int, samples: int
) -> np.ndarray:
    """Several people who talk at the same time without a pause, all equally loud.

    Args:
      rng: Source of who says what when.
      speech: Clips float32[n] to draw from, none silent.
      talkers: Number of people, at least 1.
      samples: Length.

    Returns:
      float32[samples] with a root mean square of 1.
    """
    out = np.zeros(samples, np.float32)
    for _ in range(talkers):
        at = -int(rng.integers(len(speech[0])))  # the first clip has begun before
        while at < samples:
            clip = speech[int(rng.integers(len(speech)))]
            part = clip[max(-at, 0) : samples - at] / clips.level(clip)
            out[max(at, 0) : max(at, 0) + len(part)] += part
            at += len(clip)
    return _loud(out)


def fan(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Air and blades, float32[samples] with a root mean square of 1."""
    hertz, time = rng.uniform(60, 220), np.arange(samples) / RATE
    blades = sum(
        np.sin(2 * np.pi * hertz * k * time + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 6)
    )
    return _loud(acoustics.noise(rng, "pink", samples, 1.0) + rng.uniform(0.1, 0.6) * blades)


def street(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Traffic that comes and goes, float32[samples] with a root mean square of 1."""
    time, swell = np.arange(samples) / RATE, 0.0
    for hertz in rng.uniform(0.05, 0.4, 3):
        swell = swell + np.sin(2 * np.pi * hertz * time + rng.uniform(0, 2 * np.pi))
    return _loud(acoustics.noise(rng, "brown", samples, 1.0) * np.exp(0.6 * swell))


def keys(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Somebody types, float32[samples] with a root mean square of 1."""

    def click() -> np.ndarray:
        decay = np.exp(-np.arange(RATE // 20) / (rng.uniform(0.002, 0.006) * RATE))
        return rng.uniform(0.3, 1.0) * rng.standard_normal(RATE // 20) * decay

    return _events(rng, samples, rng.uniform(3, 8), click)


def music(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Plucked tones of a scale, float32[samples] with a root mean square of 1."""
    time = np.arange(RATE) / RATE

    def tone() -> np.ndarray:
        hertz = 220 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12, 14, 16]) / 12)
        parts = (np.sin(2 * np.pi * hertz * k * time) / k**2 for k in range(1, 7))
        return np.sum(list(parts), axis=0) * np.exp(-4 * time)

    return _events(rng, samples, rng.uniform(3, 6), tone)


def dishes(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Plates and cutlery that ring, float32[samples] with a root mean square of 1."""
    time = np.arange(RATE // 3) / RATE

    def clink() -> np.ndarray:
        hertz, decays = rng.uniform(1_500, 7_000, 5), rng.uniform(15, 60, 5)
        parts = (
            np.sin(2 * np.pi * f * time) * np.exp(-d * time)
            for f, d in zip(hertz, decays, strict=True)
        )
        return rng.uniform(0.2, 1.0) * np.sum(list(parts), axis=0)

    return _events(rng, samples, rng.uniform(1, 4), clink)


def motor(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A motor whose speed wanders, float32[samples] with a root mean square of 1."""
    time = np.arange(samples) / RATE
    hertz = rng.uniform(25, 90) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * time))
    wave = scipy.signal.sawtooth(2 * np.pi * np.cumsum(hertz) / RATE)
    return _loud(wave + acoustics.noise(rng, "pink", samples, 0.3))


Background = Callable[[np.random.Generator, int], np.ndarray]
BACKGROUNDS: dict[str, dict[str, Background]] = {
    "train": {"fan": fan, "street": street, "keys": keys, "music": music},
    "heldout": {"dishes": dishes, "motor": motor},
}


def _events(
    rng: np.random.Generator, samples: int, rate: float, sound: Callable[[], np.ndarray]
) -> np.ndarray:
    """Sounds at random times, one at least, `rate` a second on average, over faint noise."""
    out = acoustics.noise(rng, "white", samples, 1e-3).astype(np.float64)
    for at in rng.integers(samples, size=1 + rng.poisson(rate * samples / RATE)):
        part = sound()[: samples - at]
        out[at : at + len(part)] += part
    return _loud(out)


def _rms(pcm: np.ndarray) -> float:
    return float(np.sqrt(np.square(pcm, dtype=np.float64).mean()))


def _loud(wave: np.ndarray) -> np.ndarray:
    """float32[samples] with a root mean square of 1."""
    return (wave / _rms(wave)).astype(np.float32)
