"""Arguments of tools: schemas of type hints, and values that are taken, converted or refused."""

import datetime
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest

from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from tests.background.fakes import wait_for

DAY = datetime.date(2026, 3, 1)
HALF_PAST_SIX = datetime.time(18, 30)


@tool
def order(
    items: list[int],
    prices: dict[str, list[float | None]] | None = None,
    units: list[Literal["kilo", "piece"]] = ["kilo"],  # noqa: B006
    day: datetime.date = DAY,
    times: list[datetime.time] | None = None,
    at: datetime.datetime | None = None,
) -> None:
    """Orders.

    Args:
      items: Their numbers.
    """


def test_the_schema_of_nested_types() -> None:
    assert order.schema["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "items": {"type": "integer"},
                "description": "Their numbers.",
            },
            "prices": {
                "type": ["object", "null"],
                "additionalProperties": {"type": "array", "items": {"type": ["number", "null"]}},
                "default": None,
            },
            "units": {
                "type": "array",
                "items": {"type": "string", "enum": ["kilo", "piece"]},
                "default": ["kilo"],
            },
            "day": {"type": "string", "format": "date", "default": "2026-03-01"},
            "times": {
                "type": ["array", "null"],
                "items": {"type": "string", "format": "time"},
                "default": None,
            },
            "at": {"type": ["string", "null"], "format": "date-time", "default": None},
        },
        "required": ["items"],
        "additionalProperties": False,
    }


def test_a_choice_that_is_none_already_is_not_listed_twice() -> None:
    @tool
    def choose(one: Literal["a", None] | None) -> None:
        """Chooses."""

    schema = choose.schema["function"]["parameters"]["properties"]["one"]
    assert schema == {"type": ["string", "null"], "enum": ["a", None]}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"items": []}, {"items": []}),
        ({"items": [1, 2.0]}, {"items": [1, 2]}),
        ({"items": [], "prices": {"a": [1, None]}}, {"items": [], "prices": {"a": [1.0, None]}}),
        ({"items": [], "prices": {}}, {"items": [], "prices": {}}),
        ({"items": [], "prices": None}, {"items": [], "prices": None}),
        ({"items": [], "units": ["piece"] * 2}, {"items": [], "units": ["piece"] * 2}),
        (
            {"items": [], "day": "2026-12-31", "times": ["18:30"], "at": "2026-12-31T18:30:00Z"},
            {
                "items": [],
                "day": datetime.date(2026, 12, 31),
                "times": [HALF_PAST_SIX],
                "at": datetime.datetime(2026, 12, 31, 18, 30, tzinfo=datetime.UTC),
            },
        ),
    ],
)
def test_values_are_taken_as_the_function_wants_them(given: dict, taken: dict) -> None:
    got = order.check(given)
    assert got == taken
    assert all(type(a) is type(b) for a, b in zip(got["items"], taken["items"], strict=True))


def test_whole_numbers_become_floats_inside_of_lists() -> None:
    got = order.check({"items": [2.0], "prices": {"a": [1]}})
    assert repr(got) == "{'items': [2], 'prices': {'a': [1.0]}}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"items": [1, 2, "x"]}, "order.items[2]: got 'x', wanted integer"),
        ({"items": [1, [2]]}, "order.items[1]: got a list, wanted integer"),
        ({"items": [True]}, "order.items[0]: got a bool, wanted integer"),
        ({"items": "1"}, "order.items: got '1', wanted array"),
        ({"items": {"0": 1}}, "order.items: got a dict, wanted array"),
        ({"items": None}, "order.items: got a NoneType, wanted array"),
        (
            {"items": [], "prices": {"the milk": [1, "x"]}},
            "order.prices['the milk'][1]: got 'x', wanted number or null",
        ),
        (
            {"items": [], "prices": {"a": [1e999]}},
            "order.prices['a'][0]: got a float, wanted number or null",
        ),
        ({"items": [], "prices": []}, "order.prices: got a list, wanted object or null"),
        ({"items": [], "units": ["box"]}, "order.units[0]: got 'box', wanted ('kilo', 'piece')"),
        ({"items": [], "day": "tomorrow"}, "order.day: got 'tomorrow', wanted a date such as 2026"),
        ({"items": [], "day": "2026-02-30"}, "order.day: got '2026-02-30', wanted a date"),
        ({"items": [], "day": 20260101}, "order.day: got a int, wanted string"),
        ({"items": [], "times": ["6 pm"]}, "order.times[0]: got '6 pm', wanted a time such as 18"),
        ({"items": [], "at": "now"}, "order.at: got 'now', wanted a date-time such as 2026"),
    ],
)
def test_the_error_names_the_part(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=r"^order\.") as caught:
        order.check(given)
    assert str(caught.value).startswith(words)


def _bare_list(a: list) -> None: ...
def _bare_dict(a: dict) -> None: ...
def _number_keys(a: dict[int, str]) -> None: ...
def _tuple(a: tuple[int, str]) -> None: ...
def _deep(a: list[dict[str, object]]) -> None: ...
def _two(a: list[int | str]) -> None: ...
def _default(a: list[int] = [1, "x"]) -> None: ...  # noqa: B006
def _day(a: datetime.date = HALF_PAST_SIX) -> None: ...
def _object(a: list[int] | None = object()) -> None: ...  # noqa: B008


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_bare_list, "_bare_list.a: got <class 'list'>, wanted int"),
        (_bare_dict, "_bare_dict.a: got <class 'dict'>, wanted int"),
        (_number_keys, "got dict[int, str]"),
        (_tuple, "got tuple[int, str]"),
        (_deep, "_deep.a: got <class 'object'>"),
        (_two, "_two.a: got int | str"),
        (_default, "_default.a: its default[1]: got 'x', wanted integer"),
        (_day, "_day.a: its default: got '18:30:00', wanted a date"),
        (_object, "_object.a: got a object, wanted a value that has a form in JSON"),
    ],
)
def test_a_hint_or_default_without_a_schema_is_refused(function: Callable, words: str) -> None:
    function.__doc__ = "Does it."
    with pytest.raises(ValueError, match="tool ") as caught:
        tool(function)
    assert words in str(caught.value)


def test_a_call_takes_lists_and_objects_as_text() -> None:
    seen: list[Any] = []
    over = threading.Event()

    @tool
    def take(numbers: list[int], named: dict[str, float]) -> None:
        """Takes."""
        seen.extend([numbers, named])
        over.set()

    call = Toolbox([take]).start('{"tool": "take", "numbers": [1, 2], "named": {"a": 1}}')
    wait_for(call.done)
    assert over.is_set() and seen == [[1, 2], {"a": 1.0}]
    assert call.result() == '{"result": null}'
