import numpy as np
import pytest

from interaction.data import clips, engines, voices


@pytest.mark.parametrize(
    ("engine", "package"), [(engines.Espeak, "espeak-ng"), (engines.Flite, "flite")]
)
def test_a_missing_engine_names_the_package(engine: type, package: str) -> None:
    with pytest.raises(engines.EngineMissing, match=f"sudo apt-get install {package}"):
        engine("libnosuchengine.so.1")


def test_word_onsets_rise_and_ends_are_audible() -> None:
    for voice in (voices.Voice("espeak", "en-us+f1", 150), voices.Voice("flite", "kal16", 1.0)):
        clip = clips.user_clip("that's what the capital of france is", voice)
        assert len(clip.onsets) == 7 and clip.onsets[0] == 0
        assert (np.diff(clip.onsets) >= 0).all() and clip.ends[-1] == np.float32(clip.seconds)
        assert clips.trimmed_span(clip.pcm) == (0, len(clip.pcm) // 80 * 80)
        assert 1.0 < clip.seconds < 4.0


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    slow = voices.Voice("espeak", "en+f4", 130, 30)
    first = clips.user_clip("count to ten", slow).pcm
    clips.user_clip("count to ten", voices.Voice("espeak", "en-029+m1", 190, 70))
    np.testing.assert_array_equal(first, clips.user_clip("count to ten", slow).pcm)


def test_unknown_voices_and_unreadable_words_are_errors() -> None:
    with pytest.raises(ValueError, match="voice: got 'nosuch'"):
        engines.espeak().say("hello", "nosuch", 150, 50)
    with pytest.raises(engines.EngineMissing, match="flite"):
        engines.flite().say("hello", "nobody", 1.0)
