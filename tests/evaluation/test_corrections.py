"""What counts as a right correction, by hand."""

import pytest

from interaction.engine.session_events import MODEL_TEXT, USER_TRANSCRIPT, SessionEvent
from interaction.evaluation.corrections import CASES, IN_TRAINED_WORDS, Timer, judge, summarise

RUNS, GONE = Timer(10.0, 600.0, False), Timer(10.0, 600.0, True)
NEW = Timer(50.0, 860.0, False)  # 40 s later, to 900 s from the first request


def _said(*words: tuple[int, str]) -> list[SessionEvent]:
    heard = SessionEvent(5, USER_TRANSCRIPT, "ring a bell")
    return [heard, *(SessionEvent(turn, MODEL_TEXT, text) for turn, text in words)]


@pytest.mark.parametrize(
    ("case", "said", "timers", "right", "touched"),
    [
        ("the pepper", [(99, "it is eighteen"), (120, " dollars")], [RUNS], True, False),
        ("the pepper", [(99, "it is nine dollars")], [RUNS], False, False),
        ("the pepper", [(20, "it is eighteen dollars")], [RUNS], False, False),  # before it
        ("the pepper", [(99, "it is eighteen dollars")], [GONE], False, True),
        ("the pepper", [(99, "it is eighteen dollars")], [GONE, NEW], False, True),
        ("the pepper", [(99, "it is eighteen dollars")], [], False, False),
        ("never mind", [(99, "sorry that did not work")], [RUNS], True, False),
        ("never mind", [(99, "okay")], [GONE], False, True),
        ("never mind", [], [RUNS], False, False),
        ("never mind", [(99, "weeks are over")], [RUNS], False, False),
        ("fifteen", [(99, "okay")], [GONE, NEW], True, False),
        ("fifteen", [(99, "okay")], [GONE, NEW._replace(seconds=900.0)], False, False),
        ("fifteen", [(99, "okay")], [RUNS, NEW], False, False),
        ("fifteen", [(99, "okay")], [RUNS], False, False),
    ],
)
def test_cases_by_hand(
    case: str, said: list, timers: list[Timer], right: bool, touched: bool
) -> None:
    seen = judge(case, "a voice", _said(*said), timers, last=60)
    assert (seen.right, seen.touched) == (right, touched)
    assert seen.heard == "ring a bell"


def test_counts() -> None:
    seen = [
        judge("never mind", "a", _said((99, "sorry that did not work")), [RUNS], 60),
        judge("never mind", "b", _said(), [GONE], 60),
        judge("the pepper", "c", _said(), [RUNS], 60),
    ]
    found = summarise(seen)
    assert (found["count"], found["right"], found["touched"]) == (3, 1, 1)
    assert found["cases"]["never mind"] == {"count": 2, "right": 1}
    assert [one["voice"] for one in found["mistakes"]] == ["b", "c"]
    assert set(found["cases"]) == {*CASES, *IN_TRAINED_WORDS}
    trained = judge("twenty", "d", _said((99, "okay")), [GONE, Timer(50.0, 1_160.0, False)], 60)
    assert trained.right and summarise([trained])["count"] == 0
