"""When a talk to the page is too slow or is not understood."""

import pytest

pytest.importorskip("playwright", reason="needs the browser extra")

from experiments.browser import missed, said_text


def test_figures_that_are_too_bad_are_named() -> None:
    good = {"mouth_to_ear_p50_s": 0.25, "mouth_to_ear_p90_s": 0.4, "recognised": 0.25}
    assert missed(good) == []
    late = missed(good | {"mouth_to_ear_p90_s": 0.41})
    assert late == ["mouth_to_ear_p90_s: got 0.41 s, wanted at most 0.4 s"]
    assert missed(good | {"recognised": 0.2}) == ["recognised: got 0.2, wanted at least 0.25"]


def test_the_words_of_the_model_are_read_from_the_transcript() -> None:
    assert said_text("you: one\nmodel: two three\nyou: four\nmodel: five") == "two three five"
