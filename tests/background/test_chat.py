"""The chat agent with a local endpoint that answers, refuses, hangs and sends garbage."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from interaction.background.agent import (
    CALL,
    DONE,
    FAILED,
    RESULT,
    TEXT,
    THINKING,
    Event,
    MicroTurn,
)
from interaction.background.chat import ChatAgent
from interaction.background.chat_transcript import Transcript
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.types import Special
from tests.background.chat_endpoint import Endpoint, Http, calling, chunk, kinds, saying, until_over
from tests.background.fakes import SILENCE, TOKENIZER, delegate, wait_for, words

RUNS: list[int] = []


@tool
def times(a: int, b: int) -> int:
    """Multiplies."""
    RUNS.append(a)
    return a * b


@tool(timeout_s=None)
def forever(cancelled: threading.Event) -> int:
    """Never ends."""
    cancelled.wait(10)
    RUNS.append(-1)
    return 0


@pytest.fixture
def agent(endpoint: Endpoint) -> Iterator[ChatAgent]:
    RUNS.clear()
    one = ChatAgent(
        "m",
        Toolbox([times, forever]),
        TOKENIZER.decode,
        base_url=endpoint.url,
        api_key="none",
        timeout_s=0.5,
    )
    yield one
    one.close()


def observe(agent: ChatAgent, text: list[int], user_transcript: str = "") -> None:
    ids = words(user_transcript)
    for token in text:
        two = [ids.pop(0) if ids else Special.NONE for _ in range(2)]
        agent.observe(MicroTurn(SILENCE, SILENCE, np.array(two, np.int32), token))


def test_words_stream_and_the_transcript_is_sent(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[*saying("It is fif", "ty-")[:2], None, *saying("six.")]]
    observe(agent, [Special.SILENT] * 4, "what is seven times eight")
    observe(agent, [*words("let me see"), *delegate("seven times eight")])
    agent.ask(1, "seven times eight")
    wait_for(lambda: endpoint.requests)
    first: list[Event] = []
    wait_for(lambda: first.extend(agent.events()) or first)
    assert kinds(first) == [(TEXT, "it is")]
    endpoint.release.set()
    assert kinds(until_over(agent)) == [(TEXT, "fifty six"), (DONE, "")]
    sent = endpoint.requests[0]
    assert sent["stream"] is True and sent["model"] == "m"
    assert [one["function"]["name"] for one in sent["tools"]] == ["times", "forever"]
    assert sent["messages"][1]["content"].splitlines() == [
        "Transcript:",
        "user: what is seven times eight",
        "assistant: let me see",
        "",
        "Request: seven times eight",
    ]


def test_calls_are_made_once_and_their_results_sent(endpoint: Endpoint, agent: ChatAgent) -> None:
    two = [*calling("times", '{"a": 7,', ' "b": 8}'), *calling("times", "oops", index=1)]
    three = [*calling("gone", "{}"), chunk({"reasoning_content": "hm"}), chunk({}, "tool_calls")]
    endpoint.answers = [[*two, chunk({}, "tool_calls")], three, saying("it is fifty six")]
    agent.ask(1, "seven times eight")
    events = until_over(agent)
    assert [one.kind for one in events] == [
        *(CALL, CALL, RESULT, RESULT),
        *(THINKING, CALL, RESULT),
        *(TEXT, TEXT, DONE),
    ]
    assert json.loads(events[0].text) == {"tool": "times", "a": 7, "b": 8}
    assert json.loads(events[2].text) == {"result": 56}
    assert "got no call" in events[3].text and "no tool 'gone'" in events[6].text
    assert RUNS == [7]
    roles = [one["role"] for one in endpoint.requests[2]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "tool"]
    told = endpoint.requests[1]["messages"]
    assert [one["tool_call_id"] for one in told[3:]] == ["c0", "c1"]
    assert told[3]["content"] == '{"result": 56}'
    assert [one["id"] for one in told[2]["tool_calls"]] == ["c0", "c1"]


GARBAGE = {
    "no json": ["data: {oops\n\n"],
    "html": ["<html>no</html>"],
    "bytes": ["\x00\x01\x02" * 100],
    "other json": ["data: [1, 2]\n\n"],
    "an error": ['data: {"error": {"message": "overloaded"}}\n\n'],
    "nothing": [],
    "cut off": saying("it is fifty six")[:1],
    "filtered": [chunk({"content": "it"}), chunk({}, "content_filter")],
    "no words": [chunk({"content": " ... "}), chunk({}, "stop")],
    "numbers": [chunk({"content": 5}), chunk({}, "stop")],
    "bad calls": [chunk({"tool_calls": [{"index": "x"}]}), chunk({}, "tool_calls")],
    "no delta": ['data: {"choices": [{"index": 0}]}\n\n'],
    "many calls": [one for i in range(20) for one in calling("times", "{}", index=i)],
    "long arguments": calling("times", "x" * 20_000),
    "refused": 401,
    "hangs": [None],
    "hangs in the middle": [*saying("it is ")[:1], None],
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_bad_response_fails_the_delegation_and_the_agent_continues(
    endpoint: Endpoint, agent: ChatAgent, answer: object
) -> None:
    endpoint.answers = [answer, saying("it is one")]
    agent.ask(1, "one")
    events = until_over(agent)
    assert events[-1].kind == FAILED and events[-1].text
    assert {one.kind for one in events[:-1]} <= {TEXT}
    agent.ask(2, "two")
    assert until_over(agent)[-1] == Event(2, DONE)
    assert len(endpoint.requests) == 2 and RUNS == []  # no request was repeated


def test_without_an_endpoint_a_delegation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    agent = ChatAgent("m", Toolbox([]), TOKENIZER.decode, base_url=url, api_key="none")
    agent.ask(1, "one")
    assert "APIConnectionError" in until_over(agent)[-1].text
    agent.close()


def patient(endpoint: Endpoint) -> ChatAgent:
    return ChatAgent("m", Toolbox([]), TOKENIZER.decode, base_url=endpoint.url, api_key="none")


def test_a_busy_endpoint_is_asked_again_when_it_says(endpoint: Endpoint) -> None:
    endpoint.answers = [Http(429, [], {"Retry-After": "0.7", "Content-Length": "0"}), saying("two")]
    agent = patient(endpoint)
    start = time.monotonic()
    agent.ask(1, "one")
    assert kinds(until_over(agent)) == [(TEXT, "two"), (DONE, "")]
    assert time.monotonic() - start >= 0.7 and len(endpoint.requests) == 2
    agent.close()


def test_a_cancelled_delegation_is_not_asked_again(endpoint: Endpoint) -> None:
    endpoint.answers = [Http(503, [], {"Retry-After": "9", "Content-Length": "0"}), saying("two")]
    agent = patient(endpoint)
    agent.ask(1, "one")
    wait_for(lambda: endpoint.requests)
    agent.cancel(1)
    wait_for(lambda: all(one.name != "chat 1" for one in threading.enumerate()))
    assert len(endpoint.requests) == 1
    agent.close()


def test_a_limit_that_is_no_time_is_refused() -> None:
    for timeout_s in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"timeout_s: got .* pass one"):
            ChatAgent("m", Toolbox([]), TOKENIZER.decode, api_key="none", timeout_s=timeout_s)


def test_a_long_answer_is_cut(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[chunk({"content": "one " * 100})] * 1_000 + saying()]
    agent.ask(1, "one")
    events = until_over(agent)
    assert events[-1].kind == DONE
    assert sum(len(one.text) for one in events) <= 2_000


def test_endless_calls_end(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[*calling("times", '{"a": 1, "b": 1}'), chunk({}, "tool_calls")]] * 20
    agent.ask(1, "one")
    assert until_over(agent)[-1] == Event(1, FAILED, "too many calls")
    assert len(RUNS) == 8


def test_an_update_starts_again_and_tells_what_was_called(
    endpoint: Endpoint, agent: ChatAgent
) -> None:
    first = [*calling("times", '{"a": 7, "b": 8}'), chunk({}, "tool_calls")]
    endpoint.answers = [first, [None], saying("sixty three")]
    agent.ask(1, "seven times eight")
    wait_for(lambda: len(endpoint.requests) == 2)
    agent.update(1, "seven times eight", ["nine"])
    events = until_over(agent)
    assert kinds(events)[-3:] == [(TEXT, "sixty"), (TEXT, "three"), (DONE, "")]
    assert endpoint.requests[2]["messages"][1]["content"].splitlines()[-3:] == [
        "Request: seven times eight",
        "Change of the request: nine",
        'Called already: {"tool": "times", "a": 7, "b": 8} -> {"result": 56}',
    ]
    endpoint.answers = [saying("seventy")]
    agent.update(1, "seven times eight", ["nine", "ten"])  # of a delegation that is done
    assert kinds(until_over(agent)) == [(TEXT, "seventy"), (DONE, "")]


def test_cancelling_stops_tools_and_words(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[*calling("forever", "{}"), chunk({}, "tool_calls")], saying("it is two")]
    agent.ask(1, "one")
    first: list[Event] = []
    wait_for(lambda: first.extend(agent.events()) or first)
    assert first == [Event(1, CALL, '{"tool": "forever"}')]
    agent.cancel(1)
    wait_for(lambda: RUNS == [-1])
    agent.ask(2, "two")
    assert {one.delegation for one in until_over(agent)} == {2}


def test_an_update_ends_running_calls(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[*calling("forever", "{}"), chunk({}, "tool_calls")], saying("two")]
    agent.ask(1, "one")
    first: list[Event] = []
    wait_for(lambda: first.extend(agent.events()) or first)
    agent.update(1, "one", ["two"])
    ended = (RESULT, '{"error": "forever: cancelled"}')
    assert kinds(until_over(agent)) == [ended, (TEXT, "two"), (DONE, "")]
    told = endpoint.requests[1]["messages"][1]["content"].splitlines()[-1]
    assert told == f'Called already: {{"tool": "forever"}} -> {ended[1]}'


def test_a_running_delegation_is_not_forgotten(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[*calling("forever", "{}"), chunk({}, "tool_calls")]]
    endpoint.answers += [saying("two")] * 34
    agent.ask(1, "one")
    wait_for(lambda: endpoint.requests)  # otherwise the second could be answered first
    for number in range(2, 36):
        agent.ask(number, "two")
        assert {one.kind for one in until_over(agent)} <= {CALL, TEXT, DONE}
    assert agent.running == (1,) and len(agent._works) <= 33


def test_two_delegations_at_once(endpoint: Endpoint, agent: ChatAgent) -> None:
    endpoint.answers = [[*saying("one ")[:1], None, *saying("two")], saying("three")]
    agent.ask(1, "one")
    wait_for(lambda: endpoint.requests)
    agent.ask(2, "two")
    events = until_over(agent)
    assert events[-1] == Event(2, DONE)
    endpoint.release.set()
    assert until_over(agent)[-1] == Event(1, DONE)


def test_the_transcript_is_bounded_and_has_no_requests() -> None:
    def turn(token: int, user_transcript: int = Special.NONE) -> MicroTurn:
        return MicroTurn(
            SILENCE, SILENCE, np.array([user_transcript, Special.NONE], np.int32), token
        )

    transcript = Transcript(TOKENIZER.decode, keep=10)
    for token in [*words("one"), *delegate("two three"), *words("four"), Special.CANCEL]:
        transcript.add(turn(token))
    transcript.add(turn(*words("five"), *words("six")))
    assert transcript.text() == "assistant: one four\nuser: six\nassistant: five"
    for _ in range(5):
        transcript.add(turn(Special.HOLD))
    assert transcript.text() == "assistant: four\nuser: six\nassistant: five"
    for _ in range(100):
        transcript.add(turn(*words("seven")))
    assert transcript.text() == "assistant: " + " ".join(["seven"] * 10)
