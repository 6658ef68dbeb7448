"""What lies between a mouth and the model's ear: levels, clipping, telephones, codecs, lost frames.

All signals are float32[samples] in [-1, 1] at 16 kHz. No channel moves speech in time, so that the
times of words hold.
"""

import functools
import io
from typing import Literal, get_args

import numpy as np
import scipy.signal
import soundfile
import soxr

from interaction.data import clips, g711
from interaction.data.clips import RATE

TELEPHONE_RATE = 8_000  # Hz
TELEPHONE_BAND = (300.0, 3_400.0)  # Hz, where the telephone's filter is at -6 dB
_TELEPHONE_TAPS = 255  # edges of about 60 Hz
LEVELS = (-50.0, -10.0)  # dBFS
FRAME = RATE // 50  # samples of a frame of a network, 20 ms
Codec = Literal["opus", "vorbis", "mp3"]
_CODECS = {"opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}
HARDEST = 0.99  # compression that every codec accepts


def set_level(pcm: np.ndarray, dbfs: float) -> np.ndarray:
    """Brings speech to a level.

    Args:
      pcm: float32[samples].
      dbfs: Level of the audible frames, see `clips.level`; a root mean square of 1 is 0 dBFS.

    Returns:
      float32[samples]. Peaks may pass full scale; `hard_clip` cuts them as a converter does.

    Raises:
      ValueError: The level is outside of `LEVELS`, or `pcm` is silent.
    """
    if not LEVELS[0] <= dbfs <= LEVELS[1]:
        raise ValueError(f"dbfs: got {dbfs}, wanted {LEVELS[0]} to {LEVELS[1]}; change it")
    if not np.any(pcm):
        raise ValueError("pcm: got silence, wanted speech; leave silence as it is")
    return pcm * np.float32(10 ** (dbfs / 20) / clips.level(pcm))


def hard_clip(pcm: np.ndarray, limit: float = 1.0) -> np.ndarray:
    """Cuts float32[samples] off at ±limit, like a converter; returns float32[samples]."""
    return np.clip(pcm, -limit, limit)


def soft_clip(pcm: np.ndarray, limit: float) -> np.ndarray:
    """Bends float32[samples] towards ±limit, like an amplifier: y = limit tanh(x / limit).

    Returns:
      float32[samples], with the slope 1 at 0.
    """
    return (limit * np.tanh(pcm / limit)).astype(np.float32)


@functools.cache
def _telephone_filter() -> np.ndarray:
    return scipy.signal.firwin(
        _TELEPHONE_TAPS, TELEPHONE_BAND, pass_zero=False, fs=TELEPHONE_RATE
    ).astype(np.float32)


def telephone(pcm: np.ndarray, law: g711.Law) -> np.ndarray:
    """A telephone call: 300 to 3,400 Hz, 8 kHz, G.711.

    Args:
      pcm: float32[samples].
      law: The companding of the samples.

    Returns:
      float32[samples].
    """
    narrow = soxr.resample(pcm, RATE, TELEPHONE_RATE)
    delay = _TELEPHONE_TAPS // 2
    narrow = scipy.signal.oaconvolve(narrow, _telephone_filter())[delay : delay + len(narrow)]
    whole = np.clip(np.round(narrow * 32_768), -32_768, 32_767).astype(np.int16)
    heard = g711.decode(g711.encode(whole, law), law).astype(np.float32) / 32_768
    return _of_length(soxr.resample(heard, TELEPHONE_RATE, RATE), len(pcm))


def lossy(pcm: np.ndarray, codec: Codec, compression: float) -> np.ndarray:
    """Encodes and decodes with a lossy codec of libsndfile.

    Args:
      pcm: float32[samples].
      codec: Opus, Vorbis or MP3.
      compression: 0 (the best sound) to `HARDEST`.

    Returns:
      float32[samples].

    Raises:
      ValueError: The codec is unknown, or the compression out of range.
    """
    if codec not in _CODECS:
        raise ValueError(f"codec: got {codec!r}, wanted one of {get_args(Codec)}; name one of them")
    if not 0 <= compression <= HARDEST:
        raise ValueError(f"compression: got {compression}, wanted 0 to {HARDEST}; change it")
    container, subtype = _CODECS[codec]
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", RATE, 1, subtype, format=container, compression_level=compression
    ) as out:
        out.write(pcm)
    file.seek(0)
    return _of_length(soundfile.read(file, dtype="float32")[0], len(pcm))


def lose_frames(
    rng: np.random.Generator, pcm: np.ndarray, share: float, burst: float = 1.0
) -> np.ndarray:
    """Silences frames of 20 ms that a network loses in bursts (the model of Gilbert).

    Args:
      rng: Source of the losses.
      pcm: float32[samples].
      share: Share of the frames that are lost on average, in [0, 1).
      burst: Frames of a burst on average, at least 1; share / (1 - share) must not be larger.

    Returns:
      float32[samples].

    Raises:
      ValueError: Share and burst contradict each other or are out of range.
    """
    if not (0 <= share < 1 and burst >= 1 and share <= burst * (1 - share)):
        raise ValueError(
            f"share, burst: got {share}, {burst}, wanted a share in [0, 1) and a burst of at least "
            "1 and share / (1 - share); lower the share or raise the burst"
        )
    starts, ends = share / (burst * (1 - share)), 1 / burst  # probabilities from frame to frame
    draws = rng.random(-(-len(pcm) // FRAME))
    lost = np.zeros(len(draws), bool)
    gone = draws[:1] < share  # the first frame is like any other
    for frame, draw in enumerate(draws):
        if frame:
            gone = draw >= ends if gone else draw < starts
        lost[frame] = gone
    return np.where(np.repeat(lost, FRAME)[: len(pcm)], np.float32(0), pcm)


def _of_length(pcm: np.ndarray, samples: int) -> np.ndarray:
    """float32[samples]: cut off, or with silence behind it."""
    return np.pad(pcm, (0, max(samples - len(pcm), 0)))[:samples].astype(np.float32)
