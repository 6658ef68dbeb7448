"""Forced alignment against the times that speech engines give for their own words."""

import numpy as np
import pytest

from interaction.data import alignment, clips
from interaction.data.voices import Voice

TEXTS = ("that's what the capital of france is", "how many legs do seven dogs have")
VOICES = (Voice("espeak", "en-us+m3", 150), Voice("flite", "rms", 1.0), Voice("flite", "awb", 1.0))


@pytest.mark.parametrize("voice", VOICES, ids=str)
def test_onsets_are_those_of_the_engine(voice: Voice) -> None:
    for text in TEXTS:
        clip = clips.user_clip(text, voice)
        error = np.abs(alignment.word_onsets(clip.pcm, text) - clip.onsets)
        assert error.max() < 0.08 and np.median(error) < 0.02  # measured: 0.058 and 0.014


def test_silence_before_the_speech_counts() -> None:
    clip = clips.user_clip(TEXTS[1], VOICES[0])
    late = np.concatenate([np.zeros(8_000, np.float32), clip.pcm])
    error = alignment.word_onsets(late, TEXTS[1]) - 0.5 - clip.onsets
    assert np.abs(error).max() < 0.08


def test_times_do_not_depend_on_what_was_aligned_before() -> None:
    # Without a reset of the features, the times of one of these move by 20 ms.
    speakers = (("espeak", "en-us+f4", 180), ("flite", "slt", 1.2), ("espeak", "en+m7", 130, 30))
    users = [Voice(*speaker) for speaker in speakers]
    said = [(clips.user_clip(text, user).pcm, text) for text in TEXTS for user in users]
    alignment._decoder.cache_clear()
    forth = [alignment.word_onsets(*one) for one in said]
    back = [alignment.word_onsets(*one) for one in reversed(said)]
    for one, other in zip(forth, reversed(back), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_aligned_is_an_error() -> None:
    clip = clips.user_clip(TEXTS[0], VOICES[0])
    with pytest.raises(ValueError, match=r"got \['blorpix'\], wanted words of the CMU dictionary"):
        alignment.word_onsets(clip.pcm, "hello blorpix")
    with pytest.raises(ValueError, match="does not fit"):
        alignment.word_onsets(clip.pcm[:4_000], TEXTS[0])
