"""What is counted as an invented answer, and that the released pair invents none."""

import types
from collections.abc import Sequence

import pytest

from interaction import presets
from interaction.background import load_reasoner
from interaction.background.agent import DONE, TEXT, MicroTurn
from interaction.background.delegations import SORRY
from interaction.background.threaded import ThreadedAgent
from interaction.evaluation import failing_tools
from tests.background.fakes import TOKENIZER

REASONER = types.SimpleNamespace(tokenizer=TOKENIZER, config=presets.tiny())


class Inventor(ThreadedAgent):
    """Gives the same answer to every request, and calls no tool."""

    answer = "it is nine dollars"

    def __init__(self, *_: object) -> None:
        super().__init__()

    def on_turns(self, turns: list[MicroTurn]) -> None:
        pass

    def on_ask(self, delegation: int, request: str) -> None:
        self.emit(delegation, TEXT, self.answer)
        self.emit(delegation, DONE)

    def on_update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        self.on_ask(delegation, request)

    def on_cancel(self, delegation: int) -> None:
        pass

    def work(self) -> bool:
        return False

    def reset(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "invented"),
    [("it is nine dollars", 12), ("the weather is sunny", 0), (SORRY, 0)],
)
def test_an_answer_without_a_result_is_invented(
    monkeypatch: pytest.MonkeyPatch, answer: str, invented: int
) -> None:
    """Words that the live model cannot say are not sent to it, so they are a failure."""
    monkeypatch.setattr(failing_tools, "ReasonerAgent", Inventor)
    monkeypatch.setattr(Inventor, "answer", answer)
    told = list(failing_tools.tell(REASONER, 12, seed=3, usable=4))
    found = failing_tools.summarise(told)
    assert (found["asked"], found["invented"]) == (12, invented)
    assert (found["usable"], found["right"], found["invented_of_usable"]) == (4, 0, invented // 3)
    assert len(found["mistakes"]) == invented + invented // 3


def test_all_kinds_of_faults_are_drawn_and_the_seed_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failing_tools, "ReasonerAgent", Inventor)
    told = list(failing_tools.tell(REASONER, 40, seed=3))
    kinds = (failing_tools.RAISES, failing_tools.LATE, failing_tools.GIVES)
    assert all(any(one.fault.startswith(kind) for one in told) for kind in kinds)
    assert any(" / " in one.request for one in told)  # a correction
    again = list(failing_tools.tell(REASONER, 40, seed=3))
    assert [one.request for one in again] == [one.request for one in told]


def test_the_released_pair_invents_nothing() -> None:
    reasoner = load_reasoner("demo_background")
    found = failing_tools.summarise(list(failing_tools.tell(reasoner, 16, seed=0, usable=8)))
    assert (found["asked"], found["invented"], found["invented_of_usable"]) == (16, 0, 0)
    assert found["right"] >= 6  # 8 of 8 where nothing else runs
