"""Spoken clips at 16 kHz, trimmed by energy, with the times of their words."""

import functools
from typing import NamedTuple

import numpy as np
import soxr

from interaction.data import engines, voices

RATE = 16_000  # Hz
_FRAME = 80  # samples of an energy frame (5 ms)
_TRIM_DB = -38.0  # relative to the loudest frame; frames below it are silence
ASSISTANT_GAIN = 0.7  # brings flite's voice slt to about -18 dBFS
ASSISTANT_STRETCH = 1.2  # about four words a second, fewer than micro-turns (five a second)


class Clip(NamedTuple):
    """Words that one voice speaks, without silence before and after them."""

    text: str
    pcm: np.ndarray  # float32[samples], 16 kHz
    onsets: np.ndarray  # float32[words], s from the first sample
    ends: np.ndarray  # float32[words], s; a word ends where the next one begins

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / RATE


def trimmed_span(pcm: np.ndarray) -> tuple[int, int]:
    """Finds where speech starts and ends, in steps of 5 ms.

    Args:
      pcm: float32[samples], 16 kHz.

    Returns:
      The first audible sample, and one past the last.
    """
    frames = len(pcm) // _FRAME
    power = np.square(pcm[: frames * _FRAME]).reshape(frames, _FRAME).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (_TRIM_DB / 10))
    return int(loud[0]) * _FRAME, int(loud[-1] + 1) * _FRAME


def make_clip(text: str, voiced: engines.Voiced, warp: float = 1.0) -> Clip:
    """Resamples and trims the speech of an engine, and shifts the times of its words with it.

    Args:
      text: The words.
      voiced: The engine's output for them.
      warp: Playback rate; above 1 the speech is faster and higher.
    """
    pcm = voiced.pcm
    if voiced.rate * warp != RATE:
        pcm = soxr.resample(pcm, voiced.rate * warp, RATE, quality="MQ")
    start, end = trimmed_span(pcm)
    pcm = np.ascontiguousarray(pcm[start:end], np.float32)
    seconds = len(pcm) / RATE
    onsets = np.clip(voiced.onsets / warp - start / RATE, 0.0, seconds).astype(np.float32)
    onsets[0] = 0.0
    return Clip(text, pcm, onsets, np.append(onsets[1:], np.float32(seconds)))


def user_clip(text: str, voice: voices.Voice) -> Clip:
    """Speech of a user, at the level that the engine gives it."""
    if voice.engine == "flite":
        voiced = engines.flite().say(text, voice.name, voice.speed)
    else:
        voiced = engines.espeak().say(text, voice.name, int(voice.speed), voice.pitch)
    return make_clip(text, voiced, voice.warp)


@functools.lru_cache(maxsize=8_192)
def assistant_clip(text: str) -> Clip:
    """Speech of the assistant, in one voice and setting; cached, do not change its arrays."""
    clip = make_clip(text, engines.flite().say(text, voices.ASSISTANT, ASSISTANT_STRETCH))
    return clip._replace(pcm=np.clip(clip.pcm * ASSISTANT_GAIN, -0.98, 0.98))


def level(pcm: np.ndarray) -> float:
    """Root mean square of the audible frames of 20 ms, those at most 30 dB below the loudest.

    Args:
      pcm: float32[samples], 16 kHz.
    """
    frames = len(pcm) // 320
    if not frames:
        return float(np.sqrt(np.square(pcm).mean()))
    power = np.square(pcm[: frames * 320]).reshape(frames, 320).mean(axis=1)
    return float(np.sqrt(power[power > power.max() * 1e-3].mean()))
