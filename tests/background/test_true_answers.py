"""What the agent that reasons with a model tells the user is true; code decides, not the model."""

import json
import time

import pytest

from interaction.background.agent import CALL, DONE, FAILED, RESULT, TEXT
from interaction.background.reasoner_agent import ReasonerAgent
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from tests.background.fake_reasoner import (
    CALLS,
    NINE,
    SCRIPT,
    FakeReasoner,
    Talk,
    answer,
    call,
    start,
    times,
)
from tests.background.fakes import TOKENIZER


@pytest.fixture
def agents() -> list:
    made: list[Talk] = []
    yield made
    for one in made:
        one.agent.close()


def read_by(talk: Talk) -> str:
    """The text of the spans that the model has read."""
    return " ".join(TOKENIZER.decode(one.tokens) for one in talk.model.states)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (ValueError("no network"), "hold failed: ValueError: no network"),
        (SystemExit(), "hold failed: SystemExit"),
        (None, 'hold: a result that cannot be said: {"result": null}'),
        (5.25, 'hold: a result that cannot be said: {"result": 5.25}'),
        (float("nan"), "hold failed: ValueError: result: got nan, wanted a finite number"),
        (True, 'hold: a result that cannot be said: {"result": true}'),
        (57, 'hold: a result that cannot be said: {"result": 57}'),
        (["one"], """hold: a result that cannot be said: {"result": ["one"]}"""),
        ("it is sunny", 'hold: a result that cannot be said: {"result": "it is sunny"}'),
    ],
)
def test_a_call_without_a_usable_result_fails_in_code(
    agents: list, result: object, why: str
) -> None:
    """The model does not read the result, and says nothing about it."""

    @tool
    def hold(name: str) -> object:
        """Gives the result."""
        if isinstance(result, BaseException):
            raise result
        return result

    script = {"seven": [call(json.dumps(CALLS[2])), answer("it is fifty six")]}
    talk = start(agents, script, hold)
    talk.agent.ask(1, "seven")
    assert [kind for kind, _ in talk.events(FAILED)] == [CALL, RESULT, FAILED]
    assert talk.got[-1].text == why
    assert "error" not in read_by(talk) and "result" not in read_by(talk)


def test_a_call_that_is_late_fails_in_code(agents: list) -> None:
    @tool(timeout_s=0.05)
    def wait() -> int:
        """Waits."""
        time.sleep(0.3)
        return 56

    talk = start(agents, {"seven": [call('{"tool": "wait"}'), answer("it is fifty six")]}, wait)
    talk.agent.ask(1, "seven")
    assert talk.events(FAILED)[-1] == (FAILED, "wait failed: wait: no result after 0.05 s")
    time.sleep(0.4)
    assert talk.agent.events() == [] and "56" not in read_by(talk)


def test_a_call_with_wrong_arguments_fails_in_code(agents: list) -> None:
    text = json.dumps({"tool": "times", "a": 7})
    talk = start(agents, {"seven": [call(text), answer("it is fifty six")]})
    talk.agent.ask(1, "seven")
    got = talk.events(FAILED)
    assert [kind for kind, _ in got] == [CALL, RESULT, FAILED] and "'b' is missing" in got[-1][1]


@pytest.mark.parametrize(
    ("said", "emitted"),
    [
        ("it is sixty three", ["it", "is"]),
        ("it is fifty", ["it", "is"]),
        ("it is fifty six seven", ["it", "is", "fifty", "six"]),
        ("fifty six", []),
    ],
)
def test_words_that_are_not_those_of_the_result_fail(
    agents: list, said: str, emitted: list[str]
) -> None:
    talk = start(agents, {"seven": [call(), answer(said)]})
    talk.agent.ask(1, "seven")
    kind, why = talk.events(FAILED)[-1]
    assert kind == FAILED and why.endswith("wanted it is fifty six")
    assert [one.text for one in talk.got if one.kind == TEXT] == emitted


def test_any_right_answer_is_said(agents: list) -> None:
    talk = start(agents, {"nine": [call(NINE), answer("sixty three")]})
    talk.agent.ask(1, "nine")
    assert talk.events(DONE)[-3:] == [(TEXT, "sixty"), (TEXT, "three"), (DONE, "")]


@pytest.mark.parametrize(
    "writes",
    [
        [answer("it is fifty six")],
        [call("{"), answer("it is fifty six")],  # after a mistake
        [call(), call(NINE), answer("it is fifty six")],  # the result of an earlier call
    ],
)
def test_words_without_their_result_fail(agents: list, writes: list[list[int]]) -> None:
    talk = start(agents, {"seven": writes})
    talk.agent.ask(1, "seven")
    kind, why = talk.events(FAILED)[-1]
    assert kind == FAILED and why.startswith("the model says 'it")
    assert "fifty" not in [one.text for one in talk.got if one.kind == TEXT]


def test_which_corrections_fit_is_what_the_model_was_trained_on(agents: list) -> None:
    talk = start(agents, SCRIPT)
    assert talk.agent.fits("seven", "nine") and not talk.agent.fits("seven", "ten")


def test_the_model_reads_corrections_in_words_that_it_knows(agents: list) -> None:
    talk = start(agents, SCRIPT)
    talk.agent.update(1, "seven times eight", ["and nine"])
    assert talk.events(DONE)[-4:-1] == [(TEXT, "is"), (TEXT, "sixty"), (TEXT, "three")]


def test_tools_that_the_model_cannot_call_are_refused() -> None:
    model = FakeReasoner(SCRIPT)

    @tool
    def population(city: str) -> int:
        """Number of people."""
        return 1

    with pytest.raises(ValueError, match=r"toolbox: got the tool 'population', wanted some of"):
        ReasonerAgent(model, Toolbox([times, population]))

    @tool
    def hold(name: int) -> str:
        """Has another argument than the model gives."""
        return ""

    with pytest.raises(ValueError, match=r"cannot take {'name': 'one'}, as the model calls it"):
        ReasonerAgent(model, Toolbox([hold]))


def test_arguments_in_the_wrong_place_are_refused() -> None:
    model, toolbox = FakeReasoner(SCRIPT), Toolbox([times])
    with pytest.raises(ValueError, match=r"toolbox: got a list, wanted a Toolbox"):
        ReasonerAgent(model, [times])
    with pytest.raises(ValueError, match=r"model: got a str, wanted a Reasoner; load one"):
        ReasonerAgent("demo_background", toolbox)
    with pytest.raises(ValueError, match=r"model: got a Toolbox, wanted a Reasoner"):
        ReasonerAgent(toolbox, model)
