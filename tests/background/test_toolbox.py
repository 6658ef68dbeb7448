"""Tools: schemas from type hints; calls that fail, hang or return too much run exactly once."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import pytest

from interaction.background.demo_tools import demo_tools
from interaction.background.tool import Tool, tool
from interaction.background.toolbox import (
    CONCURRENT,
    HUNG,
    LIMIT,
    WAITING,
    Toolbox,
    ToolCall,
    check_toolbox,
    result_json,
)
from tests.background.fakes import wait_for


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
def _bytes(a: bytes) -> None: ...
def _any(a: Any) -> None: ...  # noqa: ANN401
def _two(a: int | str) -> None: ...
def _many(*a: int) -> None: ...
def _named(tool: str) -> None: ...
def _default(a: int = "one") -> None: ...
def _event(stop: threading.Event) -> None: ...
def _unknown(a: "Nothing") -> None: ...  # noqa: F821
def _yields(a: int) -> Iterator[int]:
    yield a


async def _yields_later(a: int) -> AsyncIterator[int]:
    yield a


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_untyped, "_untyped.a: got no type"),
        (_bytes, "_bytes.a: got <class 'bytes'>"),
        (_any, "_any.a: got typing.Any"),
        (_two, "_two.a: got int | str"),
        (_many, "_many.a: got a variadic"),
        (_named, "choose another"),
        (_default, "its default: got 'one', wanted integer"),
        (_event, "`cancelled`"),
        (_unknown, "'Nothing'"),
        (_yields, "got a generator"),
        (_yields_later, "got a generator"),
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

        @tool(timeout_s=0.3)
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
    assert not call.done() and call.seconds < 0.3
    with pytest.raises(ValueError, match="check done"):
        call.result()
    assert finished(call) == {"error": "hang: no result after 0.3 s"}
    assert 0.3 <= call.seconds < 2
    counted.release.set()
    time.sleep(0.05)
    assert finished(call) == {"error": "hang: no result after 0.3 s"}
    assert counted.runs == ["hang"]


def test_a_late_result_is_no_result_although_nobody_looked() -> None:
    @tool(timeout_s=0.05)
    def slow() -> int:
        """Is slow."""
        time.sleep(0.1)
        return 1

    call = Toolbox([slow]).call("slow", {})
    wait_for(lambda: not [one for one in threading.enumerate() if one.name == "tool slow"])
    assert finished(call) == {"error": "slow: no result after 0.05 s"}


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


def test_a_hanging_call_holds_its_slot_until_its_time_limit_and_no_longer() -> None:
    counted = Counted()
    box = Toolbox(counted.tools, concurrent=2)
    calls = [box.start('{"tool": "hang"}') for _ in range(2)]
    assert "too many" in finished(box.start('{"tool": "end"}'))["error"]
    time.sleep(0.35)  # nobody asks whether the calls are done
    assert finished(box.start('{"tool": "end"}')) == {"error": "SystemExit"}
    assert all("no result" in finished(call)["error"] for call in calls)
    assert counted.runs == ["hang", "hang", "end"] and not counted.release.is_set()
    counted.release.set()


def test_a_cancelled_call_gives_its_slot_back() -> None:
    counted = Counted()
    box = Toolbox(counted.tools, concurrent=1)
    box.start('{"tool": "hang"}').cancel()
    assert finished(box.start('{"tool": "end"}')) == {"error": "SystemExit"}
    counted.release.set()


def test_a_tool_that_hangs_again_and_again_is_refused_and_no_other_tool_is() -> None:
    counted = Counted()
    box = Toolbox(counted.tools)
    for _ in range(HUNG):
        box.start('{"tool": "hang"}').cancel()
    assert "32 calls hang" in finished(box.start('{"tool": "hang"}'))["error"]
    assert counted.runs == ["hang"] * HUNG
    for _ in range(2 * CONCURRENT):
        assert finished(box.start('{"tool": "end"}')) == {"error": "SystemExit"}
    counted.release.set()
    wait_for(lambda: finished(box.start('{"tool": "hang"}')) == {"result": 1})


def test_calls_that_only_wait_take_no_slot_and_have_a_bound_of_their_own() -> None:
    counted, ran = Counted(), threading.Semaphore(0)
    timers = demo_tools([], sleep=lambda _, cancelled: (ran.release(), cancelled.wait(5)))
    box = Toolbox([*counted.tools, *timers], concurrent=1)
    text = '{"tool": "timer", "amount": 1, "unit": "minutes"}'
    calls = [box.start(text) for _ in range(WAITING)]
    assert all(ran.acquire(timeout=5) for _ in calls) and not any(call.done() for call in calls)
    assert finished(box.start('{"tool": "end"}')) == {"error": "SystemExit"}
    assert finished(box.start(text)) == {"error": "timer: too many calls are running"}
    calls[0].cancel()
    assert not box.start(text).done()
    for call in calls:
        call.cancel()


def test_which_tools_only_wait() -> None:
    async def later() -> None:
        """Waits."""

    def work() -> None:
        """Works without a limit, and cannot be told to stop."""

    def stop(cancelled: threading.Event) -> None:
        """Works until it is told to stop."""

    limits = [(function, limit) for function in (later, work, stop) for limit in (None, 5.0)]
    assert [Tool(*one).waits for one in limits] == [True, False, False, False, True, False]


class Async:
    """Tools that are `async def`, and what became of them."""

    def __init__(self) -> None:
        self.ended: list[str] = []

        @tool
        async def double(number: int) -> int:
            """Doubles."""
            await asyncio.sleep(0.01)
            return 2 * number

        @tool
        async def fail() -> None:
            """Fails."""
            await asyncio.sleep(0)
            raise TimeoutError("the shop does not answer")

        @tool(timeout_s=0.1)
        async def hang() -> None:
            """Hangs."""
            await self.sleep("hang")

        @tool(timeout_s=None)
        async def wait(cancelled: threading.Event) -> None:
            """Waits until it is told to stop."""
            await self.sleep("wait")
            assert not cancelled.is_set()

        @tool(timeout_s=0.1)
        async def stubborn() -> str:
            """Takes its time to end when it is cancelled."""
            try:
                await self.sleep("stubborn")
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)
            self.ended.append("after all")
            return "after all"

        self.box = Toolbox([double, fail, hang, wait, stubborn])

    async def sleep(self, name: str) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            self.ended.append(name)
            raise


def test_an_async_tool_is_awaited() -> None:
    box = Async().box
    calls = [box.call("double", {"number": number}) for number in range(10)]
    assert [finished(call) for call in calls] == [{"result": 2 * number} for number in range(10)]
    assert finished(box.call("fail", {})) == {"error": "TimeoutError: the shop does not answer"}


def test_the_time_limit_cancels_an_async_tool_although_nobody_looks() -> None:
    tools = Async()
    call = tools.box.call("hang", {})
    wait_for(lambda: tools.ended == ["hang"], limit_s=2)
    assert finished(call) == {"error": "hang: no result after 0.1 s"}
    assert 0.1 <= call.seconds < 1


def test_cancelling_cancels_an_async_tool() -> None:
    tools = Async()
    call = tools.box.call("wait", {})
    assert not call.done()
    time.sleep(0.05)  # it runs
    call.cancel()
    wait_for(lambda: tools.ended == ["wait"], limit_s=2)
    assert finished(call) == {"error": "wait: cancelled"}
    for _ in range(50):  # a call that is cancelled while it starts ends as well
        tools.box.call("wait", {}).cancel()
    wait_for(lambda: not [one for one in threading.enumerate() if one.name == "tool wait"])


def test_an_async_tool_may_clean_up_undisturbed_and_has_no_second_result() -> None:
    tools = Async()
    call = tools.box.call("stubborn", {})
    assert finished(call) == {"error": "stubborn: no result after 0.1 s"}
    wait_for(lambda: tools.ended == ["stubborn"])
    call.cancel()
    wait_for(lambda: tools.ended == ["stubborn", "after all"])
    assert finished(call) == {"error": "stubborn: no result after 0.1 s"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (price, "got the tool price"),
        ([price], "got a list"),
        ({"price": price}, "got a dict"),
        (lambda: None, "got a function"),
        (None, "got a NoneType"),
    ],
)
def test_what_is_no_toolbox_is_refused(value: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^toolbox: .* pass Toolbox\(\[tool, ...\]\)") as caught:
        check_toolbox(value)
    assert words in str(caught.value)
    box = Toolbox([price])
    assert check_toolbox(box) is box


@pytest.mark.parametrize("value", [price, Toolbox([price]), None])
def test_a_toolbox_is_made_of_a_list_of_tools(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^tools: got .* wanted a list of tools"):
        Toolbox(value)


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
    [b"x" * 10**7, {1: 2}, object(), float("nan"), [float("inf")], 1 << 50_000, 1j],
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
