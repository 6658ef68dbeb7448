"""What the released pair was trained on, against the generator of its training sessions."""

import numpy as np
import pytest

from interaction.background import demo_tools, trained
from interaction.background.delegations import SORRY
from interaction.data.domain import tool_requests
from interaction.data.domain.tool_requests import VALUE


def test_every_request_of_the_training_has_its_answer_and_its_corrections() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for number in range(3_000):
        request = tool_requests.draw_tool_request(rng)
        held_out = number % 2 == 0 and request.name != "clock"
        slots = tool_requests.draw_slots(request, rng, held_out)
        prices, time = tool_requests.draw_prices(rng), f"{rng.integers(1, 13)}:{number % 60:02d}"
        call = request.call(slots)
        result = tool_requests.true_result(call, prices, time)
        answer = request.answer(slots, result)
        assert trained.DEMO.answers(call, result) == (answer,)
        assert trained.says(answer), answer
        words, fix = request.delegated.format(**slots), request.fix.format(**slots)
        if fix:
            assert trained.DEMO.corrections(words, [fix]) == [fix]
        seen.add(request.name)
    assert len(seen) == len(tool_requests.TOOL_REQUESTS)


def test_every_answer_that_the_live_model_learns_to_copy_can_be_said() -> None:
    rng = np.random.default_rng(1)
    for _ in range(1_000):
        answer = tool_requests.imagine_answer(("garden", "tiger", "milk"), rng)
        assert trained.says(answer), answer
    assert trained.says(SORRY) and all(trained.says(f"it is {words}") for words in VALUE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "it is",
        "okay",
        "the weather in paris is sunny and twenty degrees",
        "thirty hours are over are over",
        "it is twenty degrees",
        "it is six seven",
        "it is one hundred zero",
        "it is twenty eleven",
        "it is one thousand",
        "it is in the garage",
        "it is in the seven",
        "it is nine dollars and",
        "sorry",
    ],
)
def test_other_sentences_cannot_be_said(text: str) -> None:
    assert not trained.says(text)


PRICE = {"tool": "lookup", "item": " milk", "field": "price"}
PLACE = PRICE | {"field": "place"}
TIMER = {"tool": "timer", "amount": 10, "unit": "minutes"}
CONVERT = {"tool": "convert", "amount": 2, "unit": "weeks", "to": "days"}
CLOCK = {"tool": "clock"}
SUM = {"tool": "calculate", "expression": "7 * 8"}


@pytest.mark.parametrize(
    ("call", "results"),
    [
        (PRICE, [None, True, 0, -1, 1_000, 5.0, 5.25, "nine", "kitchen", "over", [9], {"a": 9}]),
        (PLACE, [None, 9, "", "garage", "in the kitchen", "over", "9:30", ["kitchen"]]),
        (TIMER, [None, 600, "done", "kitchen", True, ["over"]]),
        (TIMER | {"amount": 1_000}, ["over"]),
        (TIMER | {"amount": "ten"}, ["over"]),
        (CONVERT, [None, 0, 14.5, "14", 1_000]),
        (CONVERT | {"to": "hours"}, [336]),
        (CLOCK, [None, 9, "9", "0:30", "13:30", "9:60", "9:5", "09:30", "9:30 pm"]),
        (SUM, [None, 0, 56.0, "56", 1_000, False]),
        ({"tool": "population"}, [56, "over", "kitchen"]),
    ],
)
def test_results_of_other_forms_have_no_answer(call: dict, results: list) -> None:
    assert [trained.DEMO.answers(call, result) for result in results] == [()] * len(results)


@pytest.mark.parametrize(
    ("request_words", "said", "known"),
    [
        ("ring in ten minutes", ["fifteen minutes"], ["fifteen minutes"]),
        ("ring in ten minutes", ["fifteen"], ["fifteen minutes"]),
        ("ring in ten minutes", ["six seconds", "nine"], ["six seconds", "nine seconds"]),
        ("ring in ten minutes for butter", ["twenty one"], ["twenty one minutes"]),
        ("ring in ten minutes", ["the pepper"], None),
        ("ring in ten minutes", ["fifteen", "the pepper"], None),
        ("ring in ten minutes", ["fifteen hours"], None),
        ("price of butter", ["the pepper"], ["the pepper"]),
        ("price of butter", ["pepper"], ["the pepper"]),
        ("price of butter", ["fifteen"], None),
        ("price of butter", ["fifteen minutes"], None),
        ("six weeks in days", ["nine"], ["nine weeks"]),
        ("six weeks in days", ["nine hours"], None),
        ("six times seven", ["nine"], ["nine"]),
        ("the time", ["nine"], None),
        ("something else", ["the pepper", "nine"], ["the pepper", "nine"]),
    ],
)
def test_corrections(request_words: str, said: list[str], known: list[str] | None) -> None:
    assert trained.DEMO.corrections(request_words, said) == known


def test_the_tools_of_the_demo_take_all_calls() -> None:
    tools = {one.name: one for one in demo_tools([])}
    called = set()
    for call in trained.DEMO.calls:
        tools[call["tool"]].check({name: one for name, one in call.items() if name != "tool"})
        called.add(call["tool"])
    assert called == set(tools)
    assert {call.get("unit") for call in trained.DEMO.calls} >= {"seconds", "minutes"}
