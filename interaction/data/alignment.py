"""Forced alignment with pocketsphinx: when each word of a known text begins."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from interaction.data.clips import RATE, trimmed_span

if TYPE_CHECKING:
    import pocketsphinx

_PAD = 1_600  # samples of faint noise around the speech; the recogniser wants silence there
_PAD_LEVEL = 4.0  # its standard deviation in steps of 16-bit PCM
_FRAMES = 100  # frames of the recogniser a second


@functools.cache
def _decoder() -> "pocketsphinx.Decoder":
    try:
        import pocketsphinx
    except ImportError as error:
        raise ImportError(
            "pocketsphinx: got no such package, wanted it for the times of words; "
            "pip install pocketsphinx"
        ) from error
    return pocketsphinx.Decoder(lm=None, bestpath=False, cmn="batch", loglevel="FATAL")


def word_onsets(pcm: np.ndarray, text: str) -> np.ndarray:
    """Finds the words of a text in speech, in steps of 10 ms.

    Args:
      pcm: float32[samples] in [-1, 1], 16 kHz.
      text: The words that are spoken: lower-case, in the CMU dictionary.

    Returns:
      float32[words], s from the first sample, rising.

    Raises:
      ImportError: pocketsphinx is not installed.
      ValueError: A word has no pronunciation, or the speech does not fit the text.
    """
    decoder = _decoder()
    unknown = [word for word in text.split() if decoder.lookup_word(word) is None]
    if unknown:
        raise ValueError(f"text: got {unknown}, wanted words of the CMU dictionary; spell them out")
    start, end = trimmed_span(pcm)  # long silence moves the mean of the features
    noise = np.random.default_rng(0).normal(0, _PAD_LEVEL, end - start + 2 * _PAD)
    noise[_PAD : _PAD + end - start] += np.asarray(pcm[start:end], np.float64) * 32_767
    samples = np.clip(np.round(noise), -32_768, 32_767).astype(np.int16)
    decoder.reinit_feat()  # else what was aligned before moves the times
    decoder.set_align_text(text)
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), full_utt=True)
    decoder.end_utt()
    found = [part for part in decoder.seg() or () if part.word[0] not in "<["]
    if len(found) != len(text.split()):
        raise ValueError(f"pcm: got speech that does not fit {text!r}; speak the text again")
    onsets = np.array([part.start_frame for part in found]) / _FRAMES + (start - _PAD) / RATE
    return np.maximum(onsets, start / RATE).astype(np.float32)  # it takes silence for closures
