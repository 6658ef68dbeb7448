"""Odd and hostile endpoints: each one's words are right, or its delegation fails in time."""

import gzip
import itertools
import json
import re
import threading
import time
from typing import Any, NamedTuple

import pytest

from interaction.background.agent import DONE, FAILED, TEXT, THINKING
from interaction.background.chat import ChatAgent
from interaction.background.toolbox import Toolbox
from tests.background.chat_endpoint import (
    DONE_LINE,
    Endpoint,
    Http,
    choice,
    chunk,
    data,
    saying,
    until_over,
)
from tests.background.fakes import TOKENIZER, wait_for


class Case(NamedTuple):
    """What an endpoint sends, and what must come of it."""

    answers: list[Any]  # one for each request
    says: str = ""  # all words for the user
    fails: str = ""  # a pattern in the reason; "" if it is done
    thinks: str | None = ""  # None for any
    timeout_s: float = 5.0
    within_s: float = 4.0


RIGHT = saying("It is fifty", "-six.")
SIX = "it is fifty six"
END = [chunk({}, "stop"), DONE_LINE]


def one(*body: Any, **expected: Any) -> Case:  # noqa: ANN401
    """A case of one answer."""
    return Case([list(body)], **expected)


def document(message: object, indent: int | None = None, **fields: object) -> Http:
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, **fields}]}
    return Http(200, [json.dumps(body, indent=indent)], {"Content-Type": "application/json"})


def failing(status: int, message: str, **headers: str) -> Http:
    body = json.dumps({"error": {"message": message, "type": "e", "code": None}})
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Http(status, [body], {"Content-Type": "application/json"} | names)


def lines(text: str, end: str) -> str:
    return text.replace("\n", end)


def raw(content: str) -> str:
    """A chunk whose JSON has the characters as they are."""
    return f'data: {{"choices": [{{"delta": {{"content": "{content}"}}}}]}}\n\n'


ENDLESS = itertools.repeat
REDIRECT = {"Location": "/v2/chat/completions", "Content-Length": "0"}
LOOP = {"Location": "/v1/chat/completions", "Content-Length": "0"}
CHUNKED = {"Transfer-Encoding": "chunked"}
GZIP = {"Content-Encoding": "gzip"}
SILENT = "said nothing for 0.5 s|Timeout"  # our limit or that of the client
HARMONY = "<|channel|>analysis<|message|>hm<|end|>"

WORDS = {
    # Thoughts.
    "thoughts among the words": one(
        *saying("<th", "ink>it may", " be six</t", "hink>", "It is fifty", "-six."),
        says=SIX,
        thinks="it may be six",
    ),
    "thoughts in Mistral's brackets": one(
        *saying("[THINK]hm[/THINK]It is fifty-six."), says=SIX, thinks="hm"
    ),
    "thoughts in two fields": one(
        chunk({"reasoning": "hm", "reasoning_content": "hm"}), *RIGHT, says=SIX, thinks="hm"
    ),
    "thoughts as parts of the content": one(
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
        chunk({"content": [{"type": "text", "text": "It is fifty-six."}]}),
        *END,
        says=SIX,
        thinks="hm",
    ),
    "thoughts that never end": one(
        *saying("<think>it is fifty six"), fails="said nothing", thinks="it is fifty six"
    ),
    "thoughts alone": one(
        chunk({"reasoning_content": "six"}), *END, fails="said nothing", thinks="six"
    ),
    "thoughts without end": one(
        *[chunk({"reasoning_content": "hm " * 20_000})] * 4, fails="of thoughts", thinks=None
    ),
    "the end of thoughts that began nowhere": one(
        *saying("so six. </think>It is fifty-six."), says="so six", fails="turn on its parsers"
    ),
    "a lone end of thoughts before the words": one(
        *saying("\n</think>\n\n", *["It is six"]), says="it is six"
    ),
    "control tokens of another format": one(*saying(HARMONY), fails="turn on its parsers"),
    "a control token at the end": one(*saying("It is fifty-six.<|im_", "end|>"), says=SIX),
    "a reason in the middle": one(
        chunk({"reasoning_content": "hm"}, "stop"), *RIGHT, says=SIX, thinks="hm"
    ),
    # The end.
    "another reason": one(chunk({"content": "It is fifty-six."}, "eos_token"), says=SIX),
    "the end without a reason": one(*RIGHT[:2], DONE_LINE, says=SIX),
    "a reason in every chunk": one(
        chunk({"content": "It is "}, "normal"), chunk({"content": "fifty-six."}, "normal"), says=SIX
    ),
    "a reason of no characters": one(
        *[chunk({"content": text}, "") for text in ("It is ", "fifty-six.")], *END, says=SIX
    ),
    "the end twice": one(*RIGHT[:2], *END, *END, says=SIX),
    "more after the end": one(*RIGHT, *saying(" And more."), says=SIX),
    "a connection that stays open": one(*RIGHT[:-1], None, says=SIX),
    "a broken connection after the end": Case(
        [Http(200, [f"{len(''.join(RIGHT[:-1])):x}\r\n", *RIGHT[:-1], "\r\n"], CHUNKED)], says=SIX
    ),
    "a limit of the length": one(
        chunk({"content": "It is fifty"}, "length"), says="it is", fails="ended by length"
    ),
    "a filter": one(
        chunk({"content": "It is "}),
        chunk({}, "content_filter"),
        says="it is",
        fails="content_filter",
    ),
    "an abort": one(
        chunk({"content": "It is "}), chunk({}, "abort"), says="it is", fails="ended by abort"
    ),
    "a refusal": one(
        chunk({"refusal": "I can't "}),
        chunk({"refusal": "say."}),
        *END,
        fails="refused: I can't say.",
    ),
    "nothing": one(*END, fails="said nothing"),
    "a cut in the middle of a word": one(
        chunk({"content": "It is fif"}), says="it is", fails="ended early"
    ),
    "a broken connection": Case(
        [Http(200, [f"{len(RIGHT[0]):x}\r\n", RIGHT[0], "\r\n40\r\ndata: {"], CHUNKED)],
        says="it is",
        fails="RemoteProtocolError",
    ),
    "a cut in the middle of an event": one(
        RIGHT[0], RIGHT[1][:30], says="it is", fails="ended early"
    ),
    # Chunks.
    "chunks without choices": one(
        data({"choices": [], "prompt_filter_results": [{"content_filter_results": {}}]}),
        *RIGHT[:2],
        chunk({}, "stop"),
        data({"choices": [], "usage": {"total_tokens": 9}}),
        data({"choices": None, "usage": None}),
        DONE_LINE,
        says=SIX,
    ),
    "a role alone and null": one(
        chunk({"role": "assistant", "content": None, "tool_calls": None, "refusal": None}),
        *RIGHT,
        says=SIX,
    ),
    "no delta, and pings": one(
        "event: ping\n" + data({"type": "ping"}), choice(), "data:\n\n", *RIGHT, says=SIX
    ),
    "a message for a delta": one(choice(message={"content": "It is fifty-six."}), *END, says=SIX),
    "the whole message once more": one(
        *RIGHT[:2], choice(message={"content": "It is fifty-six."}, finish_reason="stop"), says=SIX
    ),
    "an error of null": one(data({"error": None, "choices": []}), *RIGHT, says=SIX),
    "an error in the stream": one(
        RIGHT[0], data({"error": {"message": "overloaded"}}), says="it is", fails="overloaded"
    ),
    "an error beside a choice": one(
        data({"error": {"code": 502}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
        fails="502",
    ),
    "an error event": one("event: error\n" + data({"message": "too long"}), fails="too long"),
    "an error object": one(data({"object": "error", "message": "no room"}), fails="no room"),
    "an error that is a text": one(data({"error": "Unexpected endpoint"}), fails="Unexpected"),
    "garbage among the chunks": one(
        data([1]),
        data(None),
        data({"choices": [7]}),
        chunk(7),
        chunk({"content": {"a": 1}}),
        chunk({"tool_calls": [7, None]}),
        chunk({"content": [7, {"text": 8}]}),
        *RIGHT,
        says=SIX,
    ),
    "an event that is not JSON": one(RIGHT[0], "data: {oops\n\n", says="it is", fails="not JSON"),
    # Bodies.
    "lines of CR LF": one(*(lines(text, "\r\n") for text in RIGHT), says=SIX),
    "lines of CR": one(*(lines(text, "\r") for text in RIGHT), says=SIX),
    "CR and LF apart": one(*"\r\n".join("".join(RIGHT).split("\n")), says=SIX),
    "a byte order mark": one("\ufeff", *RIGHT, says=SIX),
    "no space and no blank lines": one(
        "".join(RIGHT).replace("data: ", "data:").replace("\n\n", "\n"), says=SIX
    ),
    "no line end at the end": one("".join(RIGHT[:-1]).rstrip(), says=SIX),
    "an event of several lines": one(
        lines(
            f"data: {json.dumps({'choices': [{'delta': {'content': SIX}}]}, indent=1)}", "\ndata: "
        ),
        "\n\n",
        *END,
        says=SIX,
    ),
    "comments, ids and times": one(
        ": hello\n\n", "id: 7\nretry: 9\n" + RIGHT[0], *RIGHT[1:], says=SIX
    ),
    "bytes of one character apart": one(
        *[bytes([byte]) for byte in raw("it’s six\u2028or so").encode()],
        DONE_LINE,
        says="it's six or so",
    ),
    "bytes of no encoding": one(b"data: \xff\xfe\n\n", fails="not JSON"),
    "another type of content": Case(
        [Http(200, RIGHT, {"Content-Type": "application/json; charset=latin-1"})], says=SIX
    ),
    "a document for a stream": Case(
        [document({"content": "It is fifty-six."}, finish_reason="stop")], says=SIX
    ),
    "a document of many lines": Case(
        [document({"content": "It is fifty-six."}, indent=2)], says=SIX
    ),
    "a document with an error": Case(
        [Http(200, ['{"error": "Unexpected endpoint or method"}'])], fails="Unexpected"
    ),
    "a document without choices": Case(
        [Http(200, ['{"detail": "Not Found"}'])], fails="said nothing"
    ),
    "a line of JSON for each chunk": one('{"a": 1}\n{"a": 2}\n', fails="neither a stream nor JSON"),
    "a page": Case(
        [Http(200, ["<!DOCTYPE html>\n<html>Welcome: here</html>"], {"Content-Type": "text/html"})],
        fails="<!DOCTYPE html>",
    ),
    "gzip": Case([Http(200, [gzip.compress("".join(RIGHT).encode())], GZIP)], says=SIX),
    "broken gzip": Case([Http(200, [b"\x1f\x8b\x00garbage"], GZIP)], fails="Error"),
    "a line without end": Case([Http(200, ENDLESS("data: " + "x" * 65_536))], fails="too long"),
    "words without end": Case(
        [Http(200, ENDLESS(chunk({"content": "one " * 400})))], says=" ".join(["one"] * 500)
    ),
    "a word without end": Case(
        [Http(200, ENDLESS(chunk({"content": "a" * 400})))], says="a" * 2_000
    ),
    "an object of many levels": one("data: " + '{"a":' * 100_000 + "\n\n", fails="Error"),
    # Statuses.
    **{
        f"{status} twice": Case([status, status, RIGHT], says=SIX)
        for status in (408, 429, 500, 502, 503, 529)
    },
    "429 with a time": Case([failing(429, "slow", Retry_After="0.3"), RIGHT], says=SIX),
    "429 with a date": Case(
        [failing(429, "slow", Retry_After="Wed, 21 Oct 2037 07:28:00 GMT"), RIGHT], says=SIX
    ),
    "429 with an hour": Case(
        [failing(429, "come back later", Retry_After="3600")], fails="come back later"
    ),
    "429 for ever": Case([failing(429, "quota")] * 4, fails="quota"),
    "503 for too long": Case([failing(503, "loading")] * 4, fails="loading", timeout_s=0.5),
    "a connection that closes without an answer": Case([0.0, RIGHT], says=SIX),
    "no tools": Case([failing(400, "m does not support tools")], fails="does not support tools"),
    "no model": Case([failing(404, "model 'm' not found")], fails="model 'm' not found"),
    "no right": Case([failing(401, "Incorrect API key")], fails="Incorrect API key"),
    "no money": Case([failing(402, "Insufficient credits")], fails="Insufficient credits"),
    "a list of an error": Case([Http(400, ['[{"error": {"message": "bad"}}]'])], fails="bad"),
    "a status without text": Case([Http(403, [], {"Content-Length": "0"})], fails="403"),
    "elsewhere": Case([Http(307, [], REDIRECT), RIGHT], says=SIX),
    "a circle": Case([Http(307, [], LOOP)] * 100, fails="APIConnectionError"),
    # Time.
    "slow words": one(
        *itertools.chain(*([text, 0.3] for text in saying(*"a b c d e f g h".split(" ")))),
        says="abcdefgh",
        timeout_s=1.0,
    ),
    "silence before the headers": Case([3.0], fails=SILENT, timeout_s=0.5, within_s=2.5),
    "silence": one(None, fails=SILENT, timeout_s=0.5, within_s=2.5),
    "silence in the middle": one(
        RIGHT[0], None, says="it is", fails=SILENT, timeout_s=0.5, within_s=2.5
    ),
    "comments for ever": Case(
        [Http(200, itertools.cycle([": PROCESSING\n\n", 0.05]))],
        fails="said nothing for 0.5 s",
        timeout_s=0.5,
        within_s=2.5,
    ),
    "empty words for ever": Case(
        [Http(200, itertools.cycle([chunk({"content": ""}), 0.05]))],
        fails="said nothing for",
        timeout_s=0.5,
        within_s=2.5,
    ),
    "comments in the middle for ever": Case(
        [Http(200, itertools.chain([RIGHT[0]], itertools.cycle([": PROCESSING\n\n", 0.05])))],
        says="it is",
        fails="said nothing for",
        timeout_s=0.5,
        within_s=2.5,
    ),
    "an error's text for ever": Case(
        [Http(400, itertools.cycle(["oops", 0.05]))],
        fails="said nothing for",
        timeout_s=0.5,
        within_s=2.5,
    ),
}


@pytest.mark.parametrize("case", WORDS.values(), ids=WORDS.keys())
def test_an_odd_endpoint_is_understood_or_fails_in_time(endpoint: Endpoint, case: Case) -> None:
    endpoint.answers = list(case.answers)
    agent = ChatAgent(
        "m",
        Toolbox([]),
        TOKENIZER.decode,
        base_url=endpoint.url,
        api_key="none",
        timeout_s=case.timeout_s,
    )
    start = time.monotonic()
    agent.ask(1, "one")
    events = until_over(agent)
    took = time.monotonic() - start
    assert " ".join(event.text for event in events if event.kind == TEXT) == case.says
    if case.thinks is not None:
        assert "".join(event.text for event in events if event.kind == THINKING) == case.thinks
    assert events[-1].kind == (FAILED if case.fails else DONE), events[-1]
    assert re.search(case.fails, events[-1].text), events[-1]
    assert took < case.within_s
    # The agent continues, and no thread stays.
    endpoint.answers = [saying("two")]
    agent.ask(2, "two")
    assert until_over(agent)[-1].kind == DONE
    wait_for(lambda: not any(one.name.startswith("chat ") for one in threading.enumerate()))
    agent.close()
