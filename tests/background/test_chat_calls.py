"""Calls in odd forms: each runs once with its arguments, and strict endpoints take the history."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from interaction.background.agent import CALL, DONE, FAILED, RESULT, TEXT, Event
from interaction.background.chat import ChatAgent
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from tests.background.chat_endpoint import (
    Endpoint,
    Http,
    choice,
    chunk,
    data,
    saying,
    until_over,
)
from tests.background.fakes import TOKENIZER

RUNS: list[tuple] = []
_LOCK = threading.Lock()


@tool
def times(a: int, b: int) -> int:
    """Multiplies."""
    with _LOCK:
        RUNS.append((a, b))
    return a * b


@tool
def clock() -> str:
    """Tells the time."""
    with _LOCK:
        RUNS.append(())
    return "noon"


@pytest.fixture
def agent(endpoint: Endpoint) -> Iterator[ChatAgent]:
    RUNS.clear()
    tools = Toolbox([times, clock])
    one = ChatAgent("m", tools, TOKENIZER.decode, base_url=endpoint.url, api_key="none")
    yield one
    one.close()


def part(name: str | None = None, arguments: object = None, **fields: object) -> dict:
    function = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: one for key, one in function.items() if one is not None}}


def calls(*parts: dict, reason: str = "tool_calls", **fields: object) -> list[str]:
    """A response in which each part of a call has its own chunk."""
    return [*(chunk({"tool_calls": [one], **fields}) for one in parts), chunk({}, reason)]


SEVEN, NINE = '{"a": 7, "b": 8}', '{"a": 9, "b": 8}'
A, B = (7, 8), (9, 8)
WRITTEN = '<tool_call>{"name": "times", "arguments": %s}</tool_call>'

# What an endpoint sends, and the calls that run.
FORMS: dict[str, tuple[list[str] | Http, list[tuple]]] = {
    "in one part": (calls(part("times", SEVEN, index=0, id="x")), [A]),
    "two with one index": (
        calls(part("times", SEVEN, index=0, id="x"), part("times", NINE, index=0, id="y")),
        [A, B],
    ),
    "two with one index, in pieces": (
        calls(
            part("times", "", index=0, id="x"),
            part(None, SEVEN[:5], index=0),
            part(None, SEVEN[5:], index=0),
            part("times", "", index=0, id="y"),
            part(None, NINE[:5], index=0),
            part(None, NINE[5:], index=0),
        ),
        [A, B],
    ),
    "two without index": (
        calls(part("times", SEVEN, id="x"), part("times", NINE[:5], id="y"), part(None, NINE[5:])),
        [A, B],
    ),
    "index of null": (
        calls(part("times", SEVEN[:5], index=None, id="x"), part(None, SEVEN[5:], index=None)),
        [A],
    ),
    "neither index nor id": (
        [
            chunk({"tool_calls": [part("times", SEVEN), part("times", NINE), part("clock")]}),
            *calls(),
        ],
        [A, B, ()],
    ),
    "the index in the first part alone": (
        calls(part("times", SEVEN[:5], index=0, id="x"), part(None, SEVEN[5:])),
        [A],
    ),
    "the index in the second part alone": (
        calls(part("times", SEVEN[:5], id="x"), part(None, SEVEN[5:], index=0)),
        [A],
    ),
    "an index from one, as text": (
        calls(part("times", SEVEN[:5], index="1", id="x"), part(None, SEVEN[5:], index="1")),
        [A],
    ),
    "two that alternate": (
        calls(
            part("times", SEVEN[:5], index=0, id="x"),
            part("times", NINE[:5], index=1, id="y"),
            part(None, SEVEN[5:], index=0, id=None),
            part(None, NINE[5:], index=1, id=""),
        ),
        [A, B],
    ),
    "the name in each part": (
        calls(*(part("times", one, index=0) for one in ("", SEVEN[:5], SEVEN[5:], ""))),
        [A],
    ),
    "name and id in each part": (
        calls(*(part("times", one, index=0, id="x") for one in ("", SEVEN[:5], SEVEN[5:], ""))),
        [A],
    ),
    "another id in each part": (
        calls(
            part("times", "", index=0, id="x"),
            part(None, SEVEN[:5], index=0, id="y"),
            part(None, SEVEN[5:], index=0, id="z"),
        ),
        [A],
    ),
    "the id later": (calls(part("times", "", index=0), part(None, SEVEN, index=0, id="x")), [A]),
    "the whole call once more": (
        calls(
            part("times", SEVEN[:5], index=0, id="x"),
            part(None, SEVEN[5:], index=0),
            part("times", SEVEN, index=0, id="x"),
        ),
        [A],
    ),
    "one id for two": (
        calls(part("times", SEVEN, index=0, id="x"), part("times", NINE, index=1, id="x")),
        [A, B],
    ),
    "an id that is a number": (calls(part("times", SEVEN, index=0, id=5)), [A]),
    "a name with a line end": (calls(part("times\n", SEVEN, index=0, id="x")), [A]),
    "an object for a text": (calls(part("times", {"a": 7, "b": 8}, index=0, id="x")), [A]),
    "JSON in JSON": (calls(part("times", json.dumps(SEVEN), index=0, id="x")), [A]),
    "an empty object first": (
        calls(part("times", "{}", index=0, id="x"), part(None, SEVEN, index=0)),
        [A],
    ),
    "no arguments": (calls(part("clock", "", index=0, id="x")), [()]),
    "arguments of null": (calls(part("clock", "null", index=0, id="x")), [()]),
    "a call that is no list": (
        [chunk({"tool_calls": part("times", SEVEN, index=0, id="x")}), *calls()],
        [A],
    ),
    "the end is called stop": (calls(part("times", SEVEN, index=0, id="x"), reason="stop"), [A]),
    "the form of functions": (
        [
            chunk({"function_call": {"name": "times", "arguments": ""}}),
            chunk({"function_call": {"arguments": SEVEN}}),
            chunk({}, "function_call"),
        ],
        [A],
    ),
    "a document": (
        Http(
            200,
            [
                json.dumps(
                    {
                        "choices": [
                            {
                                "message": {
                                    "content": None,
                                    "tool_calls": [
                                        part("times", SEVEN, id="x", type="function"),
                                        part("clock", "{}", id="y"),
                                    ],
                                }
                            }
                        ]
                    }
                )
            ],
        ),
        [A, ()],
    ),
    "among the words": (saying(WRITTEN % SEVEN), [A]),
    "among the words, in pieces": (saying(*re.findall(".{1,3}", WRITTEN % SEVEN)), [A]),
    "among the words, after thoughts": (saying("<think>hm</think>\n", WRITTEN % SEVEN, "\n"), [A]),
    "two among the words": (saying(WRITTEN % SEVEN + "\n" + WRITTEN % NINE), [A, B]),
    "among the words, not closed": (saying((WRITTEN % SEVEN)[:-12]), [A]),
    "among the words, called parameters": (
        saying((WRITTEN % SEVEN).replace("arguments", "parameters")),
        [A],
    ),
    "a list among the words": (
        saying('<tool_call>[{"name": "clock"}, {"name": "clock", "arguments": "{}"}]</tool_call>'),
        [(), ()],
    ),
    "among the words as well": (
        [chunk({"content": WRITTEN % SEVEN}), *calls(part("times", SEVEN, index=0, id="x"))],
        [A],
    ),
}


def check_history(messages: list[dict[str, Any]]) -> None:
    """What strict endpoints check: types, ids, JSON objects, a result for each call."""
    seen: set[str] = set()
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
            assert isinstance(message["content"], str)
            continue
        assert not waiting
        assert isinstance(message["content"], str) or message["tool_calls"]
        for call in message.get("tool_calls", ()):
            assert call["type"] == "function" and set(call["function"]) == {"name", "arguments"}
            assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call["function"]["name"])
            assert isinstance(call["id"], str) and call["id"] and call["id"] not in seen
            seen.add(call["id"])
            waiting.append(call["id"])
            arguments = json.loads(call["function"]["arguments"], parse_constant=pytest.fail)
            assert isinstance(arguments, dict)
    assert not waiting


def over(agent: ChatAgent) -> list[Event]:
    agent.ask(1, "one")
    return until_over(agent)


def spoken(events: list[Event]) -> str:
    return " ".join(one.text for one in events if one.kind == TEXT)


@pytest.mark.parametrize(("sent", "runs"), FORMS.values(), ids=FORMS.keys())
def test_a_call_in_an_odd_form_runs_once(
    endpoint: Endpoint, agent: ChatAgent, sent: list[str] | Http, runs: list[tuple]
) -> None:
    endpoint.answers = [sent, saying("It is six.")]
    events = over(agent)
    assert events[-1].kind == DONE and spoken(events) == "it is six"
    assert sorted(RUNS) == sorted(runs)
    history = endpoint.requests[1]["messages"]
    check_history(history)
    given = [json.loads(one["function"]["arguments"]) for one in history[2]["tool_calls"]]
    assert [tuple(one.values()) for one in given] == runs


BAD = {
    "cut off": '{"a": 7, "b": 8',
    "a list": "[7, 8]",
    "not a number": '{"a": NaN, "b": 8}',
    "words": "seven and eight",
    "a text in a text": '"seven"',
    "many levels": "[" * 5_000,
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_unusable_arguments_are_told_and_the_history_is_valid(
    endpoint: Endpoint, agent: ChatAgent, arguments: str
) -> None:
    endpoint.answers = [calls(part("times", arguments, index=0, id="x")), saying("sorry")]
    events = over(agent)
    assert [one.kind for one in events] == [CALL, RESULT, TEXT, DONE] and RUNS == []
    history = endpoint.requests[1]["messages"]
    check_history(history)
    assert history[2]["tool_calls"][0]["function"] == {"name": "times", "arguments": "{}"}
    assert "error" in json.loads(history[3]["content"])


def test_ids_are_unique_over_all_rounds(endpoint: Endpoint, agent: ChatAgent) -> None:
    two = calls(part("times", SEVEN, index=0, id="x"), part("times", NINE, index=1, id="x"))
    none = [chunk({"tool_calls": [part("clock"), part("times", SEVEN)]}), *calls()]
    endpoint.answers = [two, two, none, saying("It is six.")]
    assert over(agent)[-1].kind == DONE and len(RUNS) == 6
    history = endpoint.requests[-1]["messages"]
    check_history(history)
    ids = [one["id"] for message in history for one in message.get("tool_calls", ())]
    assert ids[0] == "x" and len(ids) == 6
    assert all(re.fullmatch("[A-Za-z0-9]{9}", one) for one in ids[1:])  # as Mistral wants them


def test_words_beside_a_call_are_said_and_stay_in_the_history(
    endpoint: Endpoint, agent: ChatAgent
) -> None:
    first = calls(part("times", SEVEN, index=0, id="x"), content="Let me see.")
    endpoint.answers = [first, saying("It is fifty-six.")]
    assert spoken(over(agent)) == "let me see it is fifty six"
    assert endpoint.requests[1]["messages"][2]["content"] == "Let me see."


def test_words_before_a_call_are_no_answer(endpoint: Endpoint, agent: ChatAgent) -> None:
    first = calls(part("times", SEVEN, index=0, id="x"), content="I have the result.")
    endpoint.answers = [first, saying("")]
    assert over(agent)[-1] == Event(1, FAILED, "the endpoint said nothing")


def test_signatures_and_thoughts_go_back_to_endpoints_that_want_them(
    endpoint: Endpoint, agent: ChatAgent
) -> None:
    extra = {"google": {"thought_signature": "abc="}}
    call = part("times", SEVEN, index=0, id="x", extra_content=extra)
    first = [chunk({"reasoning_content": "I mul"}), chunk({"reasoning_content": "tiply."})]
    endpoint.answers = [[*first, *calls(call)], saying("It is fifty-six.")]
    assert over(agent)[-1].kind == DONE
    message = endpoint.requests[1]["messages"][2]
    assert message["tool_calls"][0]["extra_content"] == extra
    assert message["reasoning_content"] == "I multiply." and message["content"] is None
    endpoint.answers = [calls(part("clock", "", index=0, id="x")), saying("It is noon.")]
    over(agent)
    assert set(endpoint.requests[3]["messages"][2]) == {"role", "content", "tool_calls"}


def test_an_odd_name_is_told_and_the_history_is_valid(endpoint: Endpoint, agent: ChatAgent) -> None:
    odd = calls(
        *(part(name, "{}", index=i, id=f"c{i}") for i, name in enumerate(["a.b:é", "x" * 99]))
    )
    endpoint.answers = [odd, saying("sorry")]
    events = over(agent)
    results = [one.text for one in events if one.kind == RESULT]
    assert len(results) == 2 and all("no tool" in one for one in results)
    history = endpoint.requests[1]["messages"]
    check_history(history)
    assert [one["function"]["name"] for one in history[2]["tool_calls"]] == ["a_b__", "x" * 64]


UNREADABLE = {
    "not JSON": "<tool_call>times 7 8</tool_call>",
    "another form": "<tool_call><function=times><parameter=a>7</parameter></function></tool_call>",
    "without a name": '<tool_call>{"arguments": {}}</tool_call>',
    "cut off": 'Let me see. <tool_call>{"name": "times", "arg',
    "in Mistral's form": '[TOOL_CALLS][{"name": "times"}]',
    "in Llama's form": '<function=times>{"a": 7}</function>',
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_call_among_the_words_that_cannot_be_read_fails(
    endpoint: Endpoint, agent: ChatAgent, text: str
) -> None:
    endpoint.answers = [saying(*re.findall(".{1,4}", text))]
    events = over(agent)
    assert events[-1].kind == FAILED and RUNS == []
    assert re.search("cannot be read|turn on its parsers", events[-1].text)
    assert spoken(events) in ("", "let me see")


def test_calls_without_a_name_or_in_parts_of_nothing_are_left_out(
    endpoint: Endpoint, agent: ChatAgent
) -> None:
    nothing = [chunk({"tool_calls": [{"index": 0}, {"index": "x", "id": "y"}, part("", "")]})]
    endpoint.answers = [[*nothing, *saying("It is six.")]]
    events = over(agent)
    assert spoken(events) == "it is six" and events[-1].kind == DONE


def test_a_call_after_which_the_connection_stays_open_runs(
    endpoint: Endpoint, agent: ChatAgent
) -> None:
    endpoint.answers = [[*calls(part("clock", "", index=0, id="x")), None], saying("It is noon.")]
    assert over(agent)[-1].kind == DONE and RUNS == [()]


def test_a_long_call_is_not_a_silence(endpoint: Endpoint) -> None:
    RUNS.clear()
    pieces: list[Any] = [chunk({"tool_calls": [part("times", "", index=0, id="x")]})]
    for one in re.findall("..", SEVEN):
        pieces += [0.2, chunk({"tool_calls": [part(None, one, index=0)]})]
    endpoint.answers = [[*pieces, *calls()], saying("It is fifty-six.")]
    agent = ChatAgent(
        "m",
        Toolbox([times]),
        TOKENIZER.decode,
        base_url=endpoint.url,
        api_key="none",
        timeout_s=1.0,
    )
    assert over(agent)[-1].kind == DONE and RUNS == [A]
    agent.close()


def test_a_finished_choice_with_usage_ends_a_call(endpoint: Endpoint, agent: ChatAgent) -> None:
    sent = [choice(delta={"tool_calls": [part("clock", "{}", index=0, id="x")]}), *calls()]
    endpoint.answers = [[*sent, data({"choices": [], "usage": {}})], saying("It is noon.")]
    assert over(agent)[-1].kind == DONE and RUNS == [()]
