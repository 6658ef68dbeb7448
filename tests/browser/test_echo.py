"""What counts as a self-answer in a room with an echo."""

import numpy as np
import pytest

from interaction.evaluation.transcript import Word

pytest.importorskip("playwright", reason="needs the browser extra")

from experiments.browser_echo import RATE, Asked, echo_level, make_user, score

ASKED = [Asked(0.5, 2.0, "tokyo"), Asked(12.5, 14.0, "five")]


def tone(*spans: tuple[float, float], level: float = 0.3) -> np.ndarray:
    """A tone in each span of 24 s, given in s."""
    pcm = np.zeros(24 * RATE, np.float32)
    for start, end in spans:
        time = np.arange(round(start * RATE), round(end * RATE))
        pcm[time] = level * np.sin(2 * np.pi * 200 * time / RATE)
    return pcm


def test_one_answer_to_each_request_is_no_self_answer() -> None:
    heard = [Word(1.0, "japan"), Word(2.4, "japan"), Word(13.0, "three")]
    said = [Word(2.6, "tokyo"), Word(14.6, "five")]
    found = score(ASKED, heard, said, tone((2.6, 3.4), (3.9, 4.5), (14.6, 15.2)))
    assert found == {"requests": 2, "right_answers": 2, "self_answers": 0, "heard_alone": []}


def test_speech_after_the_answer_and_words_in_the_silence_count() -> None:
    heard = [Word(1.0, "japan"), Word(5.0, "tokyo"), Word(13.0, "three")]
    said = [Word(2.6, "tokyo"), Word(6.0, "goodbye"), Word(14.6, "five")]
    found = score(ASKED, heard, said, tone((2.6, 3.4), (6.0, 6.8), (9.0, 9.5), (14.6, 15.2)))
    assert found["self_answers"] == 2 and found["heard_alone"] == ["tokyo"]
    assert found["right_answers"] == 1


def test_level_of_the_echo_counts_where_the_model_alone_speaks() -> None:
    said = tone((5, 8), (13, 14))
    took = tone((5, 8), level=0.03) + tone((0.5, 2), (12.5, 14), level=0.5)
    assert echo_level(ASKED, took, said) == {"echo_db": -20.0}
    assert echo_level(ASKED, took, tone()) == {"echo_db": None}


def test_the_user_asks_every_twelve_seconds_and_is_silent_between() -> None:
    pcm, asked = make_user(36.0)
    assert len(pcm) == 36 * RATE and [one.start_s for one in asked] == [0, 12, 24]
    assert asked[0].answer == "tokyo"
    for one in asked:
        assert np.abs(pcm[round(one.start_s * RATE) : round(one.end_s * RATE)]).max() > 0.1
        assert not pcm[round(one.end_s * RATE) + 1 : round((one.start_s + 12) * RATE)].any()
