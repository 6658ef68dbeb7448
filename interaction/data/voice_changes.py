"""Changes of a voice by the vocoder WORLD: pitch, formants and speed, each by itself.

WORLD (github.com/mmorise/World) takes speech apart into fundamental frequency, spectral envelope
and aperiodicity; its package `pyworld` comes with the extra `voices`.
"""

import numpy as np

from interaction.data.engines import Voiced

_PERIOD_MS = 5.0  # from one analysis to the next


def _warp(spectra: np.ndarray, factor: float) -> np.ndarray:
    """Moves what stands at a frequency in float64[frames, bins] to `factor` times it."""
    bins = spectra.shape[1]
    places = np.minimum(np.arange(bins) / factor, bins - 1)
    low = np.minimum(places.astype(int), bins - 2)
    part = places - low
    return np.ascontiguousarray(spectra[:, low] * (1 - part) + spectra[:, low + 1] * part)


def change_voice(
    voiced: Voiced, pitch: float = 1.0, formants: float = 1.0, speed: float = 1.0
) -> Voiced:
    """Speaks the same words with another voice.

    Args:
      voiced: pcm float32[samples], onsets float32[words].
      pitch: Factor of the fundamental frequency.
      formants: Factor of the formants; above 1 as of a shorter vocal tract.
      speed: Factor of the rate of speech.

    Returns:
      The same with float32[samples / speed] and its onsets; unchanged if all factors are 1.

    Raises:
      ImportError: The extra `voices` is not installed.
    """
    if pitch == formants == speed == 1.0:
        return voiced
    try:
        import pyworld
    except ImportError as error:
        raise ImportError(
            "pyworld: got no such package, wanted it to change voices; "
            "pip install 'interaction[voices]'"
        ) from error
    pcm, rate = voiced.pcm.astype(np.float64), voiced.rate
    rough, times = pyworld.dio(pcm, rate, frame_period=_PERIOD_MS)
    tone = pyworld.stonemask(pcm, rough, times, rate)
    envelope = _warp(pyworld.cheaptrick(pcm, tone, times, rate), formants)
    noise = _warp(pyworld.d4c(pcm, tone, times, rate), formants)
    changed = pyworld.synthesize(tone * pitch, envelope, noise, rate, _PERIOD_MS / speed)
    samples = round(len(pcm) / speed)
    changed = np.pad(changed, (0, max(samples - len(changed), 0)))[:samples]
    onsets = np.asarray(voiced.onsets / speed, np.float32)
    return Voiced(np.clip(changed, -1.0, 1.0).astype(np.float32), rate, onsets)
