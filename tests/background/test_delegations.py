"""Delegations: which requests the agent gets, and which text the live model gets."""

import gc
import time

import numpy as np
import pytest

from interaction.background.agent import CALL, DONE, FAILED, RESULT, TEXT, THINKING, Event
from interaction.background.delegations import SORRY, Delegations
from interaction.background.scripted import DIE, Line, ScriptedAgent
from interaction.types import Special
from tests.background.fakes import TOKENIZER, delegate, words
from tests.background.test_threaded import turn

END = "</delegate>"
EIGHT = "seven times eight"
ANSWER = [
    Line(2, THINKING, "hm"),
    Line(0, TEXT, "it is"),
    Line(0, TEXT, "fifty six"),
    Line(0, DONE),
]


class Talk:
    """Delegations driven turn by turn, as a conversation does it."""

    def __init__(self, script: object, slots: int = 2, **options: object) -> None:
        self.now = 0.0
        self.agent = None if script is None else ScriptedAgent(script)
        self.core = Delegations(self.agent, TOKENIZER, clock=lambda: self.now, **options)
        self.given: list[list[int]] = []
        self.notes: list[tuple] = []
        self.slots = slots

    def turns(self, tokens: list[int], seconds: float = 0.2) -> None:
        for token in tokens:
            self.now += seconds
            self.core.collect()
            arrived = self.core.take(self.slots)
            if arrived is not None:
                self.given.append([int(one) for one in arrived if one != Special.PAD])
            self.core.observe(turn(token))
            self.core.read(token)
            self.notes += [(one.delegation, one.kind) for one in self.core.notes()]

    def wait(self, turns: int = 12, seconds: float = 0.2) -> None:
        self.turns([Special.SILENT] * turns, seconds)

    @property
    def said(self) -> str:
        parts: list[str] = []
        for token in [one for tokens in self.given for one in tokens]:
            end = token == Special.END_DELEGATE
            parts.append(END if end else TOKENIZER.decode([token]))
        return " ".join(parts)


def test_a_request_and_its_answer() -> None:
    talk = Talk({EIGHT: ANSWER})
    talk.turns(delegate(EIGHT))
    assert talk.agent.told == [("ask", 1, EIGHT)]
    assert [one.text for one in talk.agent.turns] == delegate(EIGHT)
    talk.wait()
    assert talk.said == f"it is fifty six {END}"
    assert max(map(len, talk.given)) == 2
    kinds = ["asked", "thinking", "text", "text", "done", "given"]
    assert talk.notes == [(1, kind) for kind in kinds]
    assert talk.core.running == []


@pytest.mark.parametrize(
    ("tokens", "requests"),
    [
        ([Special.DELEGATE, *words("one"), Special.SILENT, Special.END_DELEGATE], []),
        ([Special.DELEGATE, Special.END_DELEGATE], []),
        ([Special.END_DELEGATE, *words("one two"), Special.END_DELEGATE], []),
        ([Special.DELEGATE, *words("one"), *delegate("two")], ["two"]),
        ([Special.DELEGATE, *words("one"), Special.CANCEL, Special.END_DELEGATE], []),
        (delegate(" ".join(["one"] * 300)), []),
        (delegate("one") + delegate("two"), ["one", "two"]),
    ],
)
def test_spans_are_words_in_a_row(tokens: list[int], requests: list[str]) -> None:
    talk = Talk({})
    talk.turns(tokens)
    assert [one[2] for one in talk.agent.told] == requests


def test_control_tokens_without_effect_are_noted() -> None:
    talk = Talk({})
    talk.turns(
        [Special.CANCEL, Special.UPDATE, Special.END_DELEGATE, Special.DELEGATE, Special.HOLD]
    )
    assert talk.notes == [(0, "ignored")] * 3
    assert talk.agent.told == [] and talk.given == []


def test_cancelling_drops_words_that_were_not_given_yet() -> None:
    talk = Talk({EIGHT: ANSWER, "one": [Line(0, TEXT, "one"), Line(9, DONE)]})
    talk.turns([*delegate("one"), *delegate(EIGHT)])
    talk.wait(3)
    assert talk.given == [words("one")]  # the second waits for the end of the first
    talk.turns([Special.CANCEL])
    assert talk.agent.told[-1] == ("cancel", 2)
    talk.wait()
    assert talk.said == f"one {END}"


def test_cancelling_in_the_middle_of_the_words_frees_the_floor() -> None:
    talk = Talk({"one": [Line(0, TEXT, "one two three"), Line(0, DONE)], EIGHT: ANSWER})
    talk.turns(delegate("one"))
    talk.turns([Special.CANCEL])
    talk.turns(delegate(EIGHT))
    talk.wait()
    assert talk.said == f"one two it is fifty six {END}"


def test_an_update_changes_the_newest_delegation_and_drops_its_words() -> None:
    eight = [Line(0, TEXT, "it is"), Line(3, TEXT, "fifty six point one two three"), Line(0, DONE)]
    script = {EIGHT: eight, "nine": [Line(1, TEXT, "sixty three"), Line(0, DONE)], "a": []}
    talk = Talk(script)
    talk.turns([*delegate("a"), *delegate(EIGHT), Special.SILENT])
    talk.turns(delegate("nine", Special.UPDATE))
    assert talk.agent.told[-1] == ("update", 2, EIGHT, "nine")
    assert talk.said == "it is"
    talk.wait()
    assert talk.said == f"it is sixty three {END}"
    assert talk.core.running == [1]


def test_the_agent_gets_the_newest_corrections() -> None:
    talk = Talk({EIGHT: [], **{words: [] for words in ("one", "two")}})
    talk.turns(delegate(EIGHT))
    for word in ("one", "two") * 5:
        talk.turns(delegate(word, Special.UPDATE))
    assert talk.agent.told[2] == ("update", 1, EIGHT, "one", "two")
    assert talk.agent.told[-1] == ("update", 1, EIGHT, *("one", "two") * 4)


def test_an_update_of_a_delegation_that_is_done_but_not_given() -> None:
    talk = Talk({EIGHT: [Line(0, TEXT, "fifty six"), Line(0, DONE)], "nine": ANSWER}, slots=1)
    talk.turns(delegate(EIGHT))
    talk.core.collect()
    for token in delegate("nine", Special.UPDATE):  # all before the next micro-turn
        talk.core.read(token)
    talk.wait()
    assert talk.said == f"it is fifty six {END}"  # of the update
    assert talk.notes.count((1, "given")) == 1


def test_nothing_arrives_while_a_correction_is_written() -> None:
    first = [Line(2, TEXT, "it is fifty six"), Line(0, DONE)]
    talk = Talk({EIGHT: first, "nine": [Line(1, TEXT, "it is sixty three"), Line(0, DONE)]})
    talk.turns(delegate(EIGHT))
    talk.turns(delegate("nine", Special.UPDATE))  # the result is ready during this
    assert talk.given == []
    talk.wait()
    assert talk.said == f"it is sixty three {END}"


def test_a_request_without_an_end_does_not_block_answers_for_ever() -> None:
    talk = Talk({EIGHT: ANSWER})
    talk.turns(delegate(EIGHT))
    talk.turns([Special.DELEGATE, *words("seven") * 600])
    assert talk.said == f"it is fifty six {END}"


def test_a_delegation_that_waits_for_a_tool_lets_others_give_their_words() -> None:
    late = [Line(12, RESULT, "{}"), Line(0, TEXT, "nine"), Line(0, DONE)]
    script = {
        "one": [Line(0, TEXT, "one two"), Line(0, CALL, "{}"), *late],
        "two": [Line(2, TEXT, "seven"), Line(0, DONE)],
    }
    talk = Talk(script)
    talk.turns([*delegate("one"), *delegate("two")])
    talk.wait(24)
    assert talk.said == f"one two {END} seven {END} nine {END}"
    assert talk.notes[-1] == (1, "given") and talk.core.running == []


def test_time_between_closing_and_saving_does_not_count() -> None:
    talk = Talk({"one": []}, limit_s=5.0)
    talk.turns(delegate("one"))
    talk.core.close()
    talk.now += 600.0
    talk.core.collect(every=True)
    assert talk.core.running == [1] and talk.core.saved()["open"][0]["worked_s"] < 1.0


def test_words_of_two_delegations_are_never_mixed() -> None:
    script = {
        "one": [Line(0, TEXT, "one"), Line(4, TEXT, "one"), Line(4, TEXT, "one"), Line(3, DONE)],
        "two": [Line(0, TEXT, "two two two two two"), Line(0, DONE)],
    }
    talk = Talk(script)
    talk.turns([*delegate("one"), *delegate("two")])
    talk.core.type("nine ten eleven")
    talk.wait(30)
    assert talk.said == f"one one one {END} nine ten eleven two two two two two {END}"
    for tokens in talk.given:
        assert Special.END_DELEGATE not in tokens[:-1]


@pytest.mark.parametrize(
    "lines",
    [
        [Line(1, FAILED, "no network")],
        [Line(1, DONE)],
        [Line(1, DIE)],
        [Line(1, TEXT, "<pad> "[:0]), Line(0, DONE)],
    ],
)
def test_a_failure_is_said(lines: list[Line]) -> None:
    talk = Talk({"one": lines})
    talk.turns(delegate("one"))
    talk.wait()
    assert talk.said == f"{SORRY} {END}"
    assert talk.notes.count((1, "failed")) == 1
    talk.turns(delegate("one"))
    talk.wait()
    assert talk.said == f"{SORRY} {END} {SORRY} {END}"


def test_a_failure_after_some_words() -> None:
    talk = Talk({"one": [Line(1, TEXT, "it is so"), Line(0, FAILED, "x")]})
    talk.turns(delegate("one"))
    talk.wait()
    assert talk.said == f"{SORRY} {END}"


def test_without_an_agent_a_delegation_fails() -> None:
    talk = Talk(None)
    talk.turns(delegate("one"))
    talk.wait()
    assert talk.said == f"{SORRY} {END}"


def test_the_time_limit_excludes_tool_calls() -> None:
    lines = [Line(1, CALL, "{}"), Line(600, RESULT, "{}"), Line(0, TEXT, "over"), Line(0, DONE)]
    talk = Talk({"timer": lines, "hang": []}, limit_s=10, calls_limit_s=300)
    talk.turns(delegate("timer"))
    talk.wait(610)
    assert talk.said == f"over {END}"
    talk.turns(delegate("hang"))
    talk.wait(40)
    assert talk.said == f"over {END}"
    talk.wait(15)
    assert talk.said == f"over {END} {SORRY} {END}"
    assert talk.agent.told[-1] == ("cancel", 2)
    talk = Talk({"timer": lines}, limit_s=10, calls_limit_s=100)
    talk.turns(delegate("timer"))
    talk.wait(610)
    assert talk.said == f"{SORRY} {END}"


def test_too_many_delegations_at_once_fail() -> None:
    talk = Talk({})
    for _ in range(40):
        talk.turns(delegate("one"))
    assert len(talk.agent.told) == 8
    talk.wait(200)
    assert talk.said.count(SORRY) >= 20 and len(talk.core.running) == 8


def test_a_correction_of_a_refused_delegation_is_not_passed_on() -> None:
    talk = Talk({}, slots=1)
    for _ in range(9):
        talk.turns(delegate("one"))
    talk.turns(delegate("two", Special.UPDATE))
    assert (9, "updated") in talk.notes and len(talk.agent.told) == 8
    talk.wait()
    assert talk.said == f"{SORRY} {END}"


def test_a_flood_of_events_takes_little_time_and_ends() -> None:
    flood = [Line(0, TEXT, "one " * 1_000_000)] + [Line(0, THINKING, "x" * 20_000)] * 2_500
    talk = Talk({"one": flood})
    talk.turns(delegate("one"))
    slowest, told = 0.0, talk.agent.told
    gc.disable()  # collecting the garbage of other tests would count as time
    for _ in range(100):
        start, before = time.thread_time(), len(talk.notes)
        talk.wait(1)
        slowest = max(slowest, time.thread_time() - start)
        assert len(talk.notes) - before <= 65
    gc.enable()
    assert slowest < 0.05
    assert told[-1] == ("cancel", 1)
    talk.wait(300)
    assert sum(map(len, talk.given)) == 501 and talk.said.endswith(END)


def test_an_agent_with_far_too_many_events_fails() -> None:
    talk = Talk({"one": [Line(0, THINKING, "x")] * 10_000})
    talk.turns(delegate("one"))
    talk.wait()
    assert talk.said == f"{SORRY} {END}"


def test_invalid_events_are_ignored() -> None:
    talk = Talk({"one": []})
    talk.turns(delegate("one"))
    stray = [Event(7, TEXT, "x"), Event(0, DONE), Event(1, TEXT, None), Event(1, "x", "x"), "junk"]
    stray += [Event(None, DONE), Event("1", DONE)]
    talk.agent.events = lambda: stray
    talk.wait(3)
    assert talk.said == "" and talk.core.running == [1]
    talk.agent.events = lambda: 5
    talk.wait(3)
    assert talk.said == "" and talk.core.running == [1]


def test_control_tokens_in_an_answer_are_removed() -> None:
    talk = Talk({"one": [Line(0, TEXT, "<cancel> </delegate> \ud800"), Line(0, DONE)]})
    talk.turns(delegate("one"))
    talk.wait(40)
    tokens = [one for part in talk.given for one in part]
    assert [one for one in tokens if one < Special.COUNT] == [Special.END_DELEGATE]


def test_typed_text_has_a_bound() -> None:
    talk = Talk({})
    talk.core.type(" ".join(["one"] * 400))
    with pytest.raises(ValueError, match="text: got 200 tokens more while 400 wait"):
        talk.core.type(" ".join(["one"] * 200))
    with pytest.raises(ValueError, match="in parts"):
        talk.core.type("x" * 10_000)
    assert np.all(talk.core.take(2) == words("one one"))
