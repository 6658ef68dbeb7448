"""A chat endpoint on this machine whose answers are a script."""

import http.server
import json
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from interaction.background.agent import DONE, FAILED, Event
from interaction.background.chat import ChatAgent

DONE_LINE = "data: [DONE]\n\n"


def data(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


def choice(**fields: object) -> str:
    body = {"id": "a", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return data({**body, "choices": [{"index": 0, **fields}]})


def chunk(delta: object, reason: str | None = None) -> str:
    return choice(delta=delta, finish_reason=reason)


def saying(*pieces: str) -> list[str]:
    return [*(chunk({"content": one}) for one in pieces), chunk({}, "stop"), DONE_LINE]


def calling(name: str, *arguments: str, index: int = 0) -> list[str]:
    first = {"index": index, "id": f"c{index}", "function": {"name": name, "arguments": ""}}
    parts = [{"index": index, "function": {"arguments": one}} for one in arguments]
    return [chunk({"tool_calls": [one]}) for one in (first, *parts)]


class Http(NamedTuple):
    """An answer with its own status, headers and body."""

    status: int
    body: Iterable[str | bytes | float | None]  # text or bytes; s to wait; None waits for release
    headers: dict[str, str] = {}  # noqa: RUF012


class Endpoint:
    """A server on this machine; each request takes the next answer of its script.

    An answer is a status, the body of an event stream, or an `Http`; a number of s is silence, and
    then the connection closes.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answers: list[Any] = []
        self.release = threading.Event()
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                endpoint.requests.append(json.loads(self.rfile.read(length)))
                endpoint.paths.append(self.path)
                answer = endpoint.answers.pop(0)
                if isinstance(answer, float):
                    endpoint.release.wait(answer)
                    return
                if isinstance(answer, int):
                    self.send_error(answer)
                else:
                    self.send(answer if isinstance(answer, Http) else Http(200, answer))

            def send(self, answer: Http) -> None:
                self.send_response(answer.status)
                headers = {"Content-Type": "text/event-stream"} | answer.headers
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for piece in answer.body:
                        if piece is None:
                            endpoint.release.wait(5)
                        elif isinstance(piece, float):
                            time.sleep(piece)
                        else:
                            self.wfile.write(piece.encode() if isinstance(piece, str) else piece)
                            self.wfile.flush()
                except OSError:
                    pass

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


def until_over(agent: ChatAgent, overs: int = 1) -> list[Event]:
    events: list[Event] = []
    end = time.monotonic() + 10
    while sum(one.kind in (DONE, FAILED) for one in events) < overs:
        assert time.monotonic() < end, events
        events += agent.events()
        time.sleep(0.005)
    return events


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(one.kind, one.text) for one in events]
