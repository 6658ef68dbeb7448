"""G.711, the mu-law and A-law of telephony: 16-bit samples as codes of 8 bits (ITU-T G.711)."""

from typing import Literal

import numpy as np

Law = Literal["mu", "a"]


def _mu_law() -> np.ndarray:
    """The sample int16[256] of each code of the mu-law."""
    code = ~np.arange(256)
    size = ((((code & 15) << 3) + 132) << ((code >> 4) & 7)) - 132
    return np.where(code & 128, -size, size).astype(np.int16)


def _a_law() -> np.ndarray:
    """The sample int16[256] of each code of the A-law."""
    code = np.arange(256) ^ 0x55
    segment, step = (code >> 4) & 7, ((code & 15) << 4) + 8
    size = np.where(segment > 0, (step + 256) << np.maximum(segment - 1, 0), step)
    return np.where(code & 128, size, -size).astype(np.int16)


_SAMPLES: dict[Law, np.ndarray] = {"mu": _mu_law(), "a": _a_law()}
_ORDER = {law: np.argsort(samples, kind="stable") for law, samples in _SAMPLES.items()}


def encode(pcm: np.ndarray, law: Law) -> np.ndarray:
    """The code uint8[n] whose sample is nearest to each of int16[n]."""
    order = _ORDER[law]
    ordered = _SAMPLES[law][order].astype(np.int32)
    middle = (ordered[1:] + ordered[:-1]) / 2
    return order[np.searchsorted(middle, pcm)].astype(np.uint8)


def decode(codes: np.ndarray, law: Law) -> np.ndarray:
    """The sample int16[n] of each code uint8[n]."""
    return _SAMPLES[law][codes]
