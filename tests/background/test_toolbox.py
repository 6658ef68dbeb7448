"""Tools: schemas from type hints; calls that fail, hang or return too much run exactly once."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest

from interaction.background.tool import tool
from interaction.background.toolbox import LIMIT, Toolbox, ToolCall, result_json


@tool(timeout_s=5)
def price(
    item: str, count: int = 1, unit: Literal["kilo", "piece"] = "kilo", cut: float | None = None
) -> float:
    """What something costs.

    In dollars.

    Args:
      item: Its name,
        in one word.
      count: How many.
    """
    return {"milk": 2.0}[item] * count


def test_the_schema_says_what_the_signature_says() -> None:
    assert price.schema == {
        "type": "function",
        "function": {
            "name": "price",
            "description": "What something costs. In dollars.",
            "parameters": {
                "type": "object",
                "properties": {
                    "item": {"type": "string", "description": "Its name, in one word."},
                    "count": {"type": "integer", "description": "How many.", "default": 1},
                    "unit": {"type": "string", "enum": ["kilo", "piece"], "default": "kilo"},
                    "cut": {"type": ["number", "null"], "default": None},
                },
                "required": ["item"],
                "additionalProperties": False,
            },
        },
    }
    assert Toolbox([price]).schemas() == [price.schema]
    assert price("milk", 2) == 4


def _documented(function: Callable) -> Callable:
    function.__doc__ = "Does it."
    return function


def _untyped(a) -> None: ...  # noqa: ANN001
def _list(a: list[int]) -> None: ...
def _any(a: Any) -> None: ...  # noqa: ANN401
def _two(a: int | str) -> None: ...
def _many(*a: int) -> None: ...
def _named(tool: str) -> None: ...
def _default(a: int = "one") -> None: ...
def _event(stop: threading.Event) -> None: ...
def _unknown(a: "Nothing") -> None: ...  # noqa: F821
async def _later(a: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_untyped, "_untyped.a: got no type"),
        (_list, "_list.a: got list"),
        (_any, "_any.a: got typing.Any"),
        (_two, "_two.a: got int | str"),
        (_many, "_many.a: got a variadic"),
        (_named, "choose another"),
        (_default, "its default: got 'one', wanted integer"),
        (_event, "`cancelled`"),
        (_unknown, "'Nothing'"),
        (_later, "coroutine"),
    ],
)
def test_a_function_without_a_schema_is_refused_at_registration(
    function: Callable, words: str
) -> None:
    with pytest.raises(ValueError, match="tool ") as caught:
        tool(_documented(function))
    assert words in str(caught.value)


def _silent(a: int) -> None: ...


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="no docstring"):
        tool(_silent)
    with pytest.raises(ValueError, match="with a name"):
        tool(lambda: None)
    with pytest.raises(ValueError, match="timeout_s=0"):
        tool(timeout_s=0)(_silent)
    with pytest.raises(ValueError, match="twice"):
        Toolbox([price, price])
    with pytest.raises(ValueError, match="decorate it"):
        Toolbox([_silent])
    with pytest.raises(ValueError, match="at least 1"):
        Toolbox([price], concurrent=0)


def finished(call: ToolCall, limit_s: float = 5.0) -> dict:
    end = time.monotonic() + limit_s
    while not call.done():
        assert time.monotonic() < end
        time.sleep(0.002)
    assert len(call.result()) <= LIMIT
    return json.loads(call.result())


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ('{"tool": "price", "item": "milk"}', {"result": 2.0}),
        ('{"tool": "price", "item": "milk", "count": 3.0, "cut": 1}', {"result": 6.0}),
        ('{"tool": "price", "item": "tea"}', {"error": "KeyError: 'tea'"}),
        ('{"tool": "price", "item": 3}', {"error": "price.item: got a int, wanted string"}),
        ('{"tool": "price", "item": "milk", "count": 1.5}', "price.count: got a float"),
        ('{"tool": "price", "item": "milk", "count": true}', "price.count: got a bool"),
        ('{"tool": "price", "item": "milk", "cut": NaN}', "price.cut"),
        ('{"tool": "price", "item": "milk", "cut": 1' + "0" * 400 + "}", "price.cut"),
        ('{"tool": "price", "item": "milk", "unit": "box"}', "wanted ('kilo', 'piece')"),
        ('{"tool": "price"}', "'item' is missing"),
        ('{"tool": "price", "item": "milk", "x": 1}', "no argument 'x'"),
        ('{"tool": "gone"}', "no tool 'gone', wanted one of ['price']"),
        ('{"tool": 3}', "no name"),
        ('{"item": "milk"}', "got no call"),
        ("[1]", "got no call"),
        ("{" * 10, "got no call"),
        ("[" * 15_000, "got no call"),
        ('{"tool": "price", "item": "' + "x" * 30_000 + '"}', "got no call"),
    ],
)
def test_calls_as_text(text: str, result: dict | str) -> None:
    got = finished(Toolbox([price]).start(text))
    assert got == result if isinstance(result, dict) else result in got["error"]


class Counted:
    """Tools of every bad kind, and how often each was run."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.saw_cancel = threading.Event()
        self.release = threading.Event()

        @tool(timeout_s=0.1)
        def hang() -> int:
            """Hangs."""
            self.runs.append("hang")
            self.release.wait(5)
            return 1

        @tool(timeout_s=None)
        def wait(cancelled: threading.Event) -> int:
            """Waits until it is told to stop."""
            self.runs.append("wait")
            cancelled.wait(5)
            self.saw_cancel.set()
            return 1

        @tool
        def end() -> None:
            """Ends its thread."""
            self.runs.append("end")
            raise SystemExit

        @tool
        def shout() -> None:
            """Raises at length."""
            raise ValueError("x" * 1_000_000)

        self.tools = [hang, wait, end, shout]


def test_a_hanging_tool_runs_out_of_time_once() -> None:
    counted = Counted()
    box = Toolbox(counted.tools)
    call = box.start('{"tool": "hang"}')
    assert not call.done() and call.seconds < 0.1
    with pytest.raises(ValueError, match="check done"):
        call.result()
    assert finished(call) == {"error": "hang: no result after 0.1 s"}
    assert 0.1 <= call.seconds < 2
    counted.release.set()
    time.sleep(0.05)
    assert finished(call) == {"error": "hang: no result after 0.1 s"}
    assert counted.runs == ["hang"]


def test_cancelling_tells_a_tool_to_stop() -> None:
    counted = Counted()
    call = Toolbox(counted.tools).start('{"tool": "wait"}')
    assert not call.done()
    call.cancel()
    assert finished(call) == {"error": "wait: cancelled"}
    assert counted.saw_cancel.wait(5)
    assert counted.runs == ["wait"]
    assert "cancelled" not in str(Toolbox(counted.tools).schemas())


def test_a_tool_that_ends_its_thread_or_raises_at_length() -> None:
    box = Toolbox(Counted().tools)
    assert finished(box.start('{"tool": "end"}')) == {"error": "SystemExit"}
    assert len(finished(box.start('{"tool": "shout"}'))["error"]) < 300


def test_calls_at_once_are_bounded() -> None:
    counted = Counted()
    box = Toolbox(counted.tools, concurrent=2)
    calls = [box.start('{"tool": "hang"}') for _ in range(3)]
    assert "too many" in finished(calls[2])["error"]
    assert all("no result" in finished(call)["error"] for call in calls[:2])
    assert "too many" in finished(box.start('{"tool": "end"}'))["error"]  # two threads still hang
    counted.release.set()
    time.sleep(0.1)
    assert finished(box.start('{"tool": "end"}')) == {"error": "SystemExit"}
    assert counted.runs == ["hang", "hang", "end"]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "\x01é" * 5_000_000,
        [["\n"]] * 5_000_000,
        dict.fromkeys(map(str, range(10**6))),
    ],
    ids=["text", "escapes", "lists", "fields"],
)
def test_a_large_result_is_cut_without_being_read_in_full(value: Any) -> None:  # noqa: ANN401
    start = time.thread_time()
    text = result_json(value)
    assert time.thread_time() - start < 0.02
    got = json.loads(text)
    assert LIMIT // 2 < len(text) <= LIMIT and got["cut"] is True and isinstance(got["result"], str)


@pytest.mark.parametrize(
    "value", ["x" * 1_900, [1, 2.5, None, True, "é"], {"a": {"b": []}}, -3, "", (1,), 10**300]
)
def test_a_short_result_is_not_cut(value: Any) -> None:  # noqa: ANN401
    assert json.loads(result_json(value)) == json.loads(json.dumps({"result": value}))


@pytest.mark.parametrize(
    "value",
    [b"x" * 10**7, {1: 2}, {1}, object(), float("nan"), [float("inf")], 1 << 50_000, 1j],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_form_in_json_is_refused(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="result: got"):
        result_json(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list = []
    value.append(value)
    with pytest.raises(ValueError, match="levels"):
        result_json(value)
