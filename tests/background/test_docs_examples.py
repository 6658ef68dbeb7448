"""The Python examples of docs/background.md run as they stand, one after the other."""

import http.server
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from interaction.background.agent import CALL, DONE, RESULT, TEXT, Event, MicroTurn
from tests.background.fakes import SILENCE, wait_for

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "background.md"
PLACE = "http://localhost:8000/v1"  # the endpoint in the docs
TURNS = 3  # micro-turns of the microphone


def blocks() -> list[str]:
    """The Python of the docs."""
    return re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), flags=re.M | re.S)


def streamed(delta: dict[str, Any], reason: str) -> bytes:
    """An answer of a chat endpoint, in one piece."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    body = {"id": "a", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return f"data: {json.dumps({**body, 'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Calls `population` for a request, and speaks when it gets the result."""

    got: list[dict]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append(request)
        function = {"name": "population", "arguments": '{"city": "oslo"}'}
        call = {"index": 0, "id": "c0", "type": "function", "function": function}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if request["messages"][-1]["role"] == "tool":
            self.wfile.write(streamed({"content": "seven hundred nine thousand"}, "stop"))
        else:
            self.wfile.write(streamed({"tool_calls": [call]}, "tool_calls"))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict]]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("Handler", (Endpoint,), {"got": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler.got
    server.shutdown()
    server.server_close()


def answered(agent: Any, request: str) -> list[Event]:  # noqa: ANN401
    """The events of a delegation, while micro-turns pass."""
    events: list[Event] = []
    agent.ask(1, request)

    def over() -> bool:
        agent.observe(MicroTurn(SILENCE, SILENCE, np.zeros(2, np.int32), 1))
        events.extend(agent.events())
        return bool(events) and events[-1].kind == DONE

    wait_for(over)
    return events


def test_the_examples_run_and_do_what_the_docs_say(
    tmp_path: pathlib.Path, endpoint: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url, got = endpoint
    replies: list[Any] = []
    names: dict[str, Any] = {"microphone": iter([SILENCE] * TURNS), "speaker": replies.append}
    talk, chat, script, order = [
        compile(text.replace(PLACE, url), f"{DOCS.name}, example {number}", "exec")
        for number, text in enumerate(blocks(), 1)
    ]

    exec(talk, names)
    assert len(replies) >= TURNS and replies[0].audio.shape == SILENCE.shape
    assert pathlib.Path("talk.session").stat().st_size > 0

    exec(chat, names)
    events = answered(names["agent"], "population of oslo")
    assert (CALL, '{"tool": "population", "city": "oslo"}') in [one[1:] for one in events]
    assert (RESULT, '{"result": 709000}') in [one[1:] for one in events]
    said = " ".join(one.text for one in events if one.kind == TEXT)
    assert said == "seven hundred nine thousand"
    assert got[0]["tools"][0]["function"]["name"] == "population" and len(got) == 2
    names["agent"].close()

    exec(script, names)
    assert [one[1:] for one in answered(names["agent"], "seven times eight")] == [
        (TEXT, "it is fifty six"),
        (DONE, ""),
    ]

    exec(order, names)
    wait_for(names["call"].done)
    assert f"`{names['call'].result()}`" in DOCS.read_text()
