"""`ChatAgent`: a background agent that reasons with a chat endpoint of OpenAI's protocol.

It keeps a transcript of both sides of the conversation. Each response of the endpoint streams on
its own thread; the thread of `ThreadedAgent` collects the pieces, and watches the time.
"""

import contextlib
import dataclasses
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from interaction.background.agent import DONE, FAILED, RESULT, TEXT, THINKING, MicroTurn
from interaction.background.chat_calls import ChatCall
from interaction.background.chat_stream import ANSWER, ENDING, Answer, ResponseReader, read_events
from interaction.background.chat_transcript import Transcript
from interaction.background.spoken import complete, speakable
from interaction.background.threaded import KEEP, ThreadedAgent
from interaction.background.toolbox import Toolbox, ToolCall, check_toolbox

try:
    import openai
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "interaction.background.chat needs a library: pip install 'interaction[chat]'"
    ) from error

PROMPT = (
    "You help a voice assistant in the middle of a talk. You get a transcript, as it was heard, "
    "and a request. Call tools where they help, without saying anything before. Then answer in one "
    "short sentence that is read aloud: plain lower case words, numbers spelled out, no "
    "punctuation, no formatting."
)
_REQUESTS = 8  # most requests to the endpoint for one delegation, without retries
_RETRIES = 3  # most retries of one request
_RETRY_S = 0.25  # s before the first retry, if the endpoint asks for no other time; then doubled
_RETRIED = (408, 409, 425, 429)  # and all from 500: statuses of requests that may succeed later
_GRACE_S = 1.0  # longest silence after a reason for the end, s
_AT_ONCE = 16  # most threads at once, including those that wait for a silent endpoint
_REMEMBERED = 32  # delegations; beyond these the oldest that are done are forgotten
_ERROR = "error"  # kind of a piece: the response failed


@dataclasses.dataclass
class _Response:
    """A response that streams; its thread adds the pieces."""

    until: float  # when its silence is too long, s of time.monotonic
    pieces: queue.SimpleQueue = dataclasses.field(default_factory=queue.SimpleQueue)
    dropped: threading.Event = dataclasses.field(default_factory=threading.Event)
    connection: Any = None  # its socket
    trouble: str = ""  # why the last try failed
    ending: bool = False

    def hang_up(self) -> None:
        """Ends the reading, however long the endpoint would go on."""
        with contextlib.suppress(AttributeError, OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclasses.dataclass
class _Work:
    """One delegation."""

    request: str
    updates: list[str] = dataclasses.field(default_factory=list)
    made: list[str] = dataclasses.field(default_factory=list)  # finished calls with results, JSON
    messages: list[Any] = dataclasses.field(default_factory=list)
    ids: set[str] = dataclasses.field(default_factory=set)  # of all calls in the messages
    requests: int = 0  # requests to the endpoint so far
    response: _Response | None = None  # the response that streams
    # Running calls: id, JSON of the call, call.
    calls: list[tuple[str, str, ToolCall]] = dataclasses.field(default_factory=list)
    rest: str = ""  # words of the response that later ones may change
    said: bool = False  # whether the response had words


class ChatAgent(ThreadedAgent):
    """A `BackgroundAgent` that sends delegations to a chat endpoint."""

    def __init__(
        self,
        model: str,
        toolbox: Toolbox,
        decode: Callable[[Sequence[int]], str],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        prompt: str = PROMPT,
        timeout_s: float = 30.0,
        keep: int = KEEP,
    ) -> None:
        """Makes an agent; nothing is sent before the first delegation.

        Args:
          model: Name of the model at the endpoint.
          toolbox: Tools that it can call.
          decode: Decodes token ids of the live model, for example its `tokenizer.decode`.
          base_url: Address of the endpoint; None takes OPENAI_BASE_URL, or else OpenAI's.
          api_key: Key of the endpoint; None takes OPENAI_API_KEY.
          prompt: System prompt.
          timeout_s: Longest silence of the endpoint, s: without words, thoughts or calls, whatever
            else it sends. Retries of a request that failed count as silence.
          keep: Micro-turns that the transcript covers.

        Raises:
          ValueError: The longest silence is not a positive number.
          openai.OpenAIError: There is no key.
        """
        if not 0 < timeout_s < float("inf"):
            raise ValueError(f"timeout_s: got {timeout_s}, wanted a positive number of s; pass one")
        super().__init__(keep)
        hooks = {"response": [self._on_headers]}
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=timeout_s,
            max_retries=0,  # the client's own waits cannot be ended
            http_client=openai.DefaultHttpxClient(timeout=timeout_s, event_hooks=hooks),
        )
        self._timeout_s = timeout_s
        self._local = threading.local()  # `response` of a response's thread
        self._model = model
        self._toolbox = check_toolbox(toolbox)
        self._prompt = prompt
        self._room = threading.Semaphore(_AT_ONCE)
        self._transcript = Transcript(decode, keep)
        self._works: dict[int, _Work] = {}

    def close(self) -> None:
        """Ends the thread and the connections."""
        super().close()
        for work in list(self._works.values()):
            _stop(work)
        self._client.close()

    def on_turns(self, turns: list[MicroTurn]) -> None:
        """See `ThreadedAgent`."""
        for turn in turns:
            self._transcript.add(turn)

    def on_ask(self, delegation: int, request: str) -> None:
        """See `ThreadedAgent`."""
        self._works[delegation] = work = _Work(request)
        done = [one for one in self._works if one not in self.running]
        while done and len(self._works) > _REMEMBERED:
            del self._works[done.pop(0)]
        self._begin(delegation, work)

    def on_update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """See `ThreadedAgent`; the endpoint is told which calls were made before."""
        before = self._works.pop(delegation, _Work(""))
        _stop(before)
        for _, _, call in before.calls:
            self.emit(delegation, RESULT, call.result())
        made = [*before.made, *(f"{text} -> {call.result()}" for _, text, call in before.calls)]
        work = _Work(request, list(updates), made)
        self._works[delegation] = work
        self._begin(delegation, work)

    def on_cancel(self, delegation: int) -> None:
        """See `ThreadedAgent`."""
        _stop(self._works.pop(delegation))

    def reset(self) -> None:
        """See `ThreadedAgent`."""
        for work in self._works.values():
            _stop(work)
        self._works.clear()
        self._transcript.clear()

    def work(self) -> bool:
        """See `ThreadedAgent`."""
        for number in self.running:
            work = self._works[number]
            while (response := work.response) is not None:
                try:
                    kind, value = response.pieces.get_nowait()
                except queue.Empty:
                    self._watch(number, work, response)
                    break
                response.until = time.monotonic() + self._timeout_s
                self._take(number, work, response, kind, value)
            if work.calls and all(call.done() for _, _, call in work.calls):
                self._answer_calls(number, work)
        return False

    def _watch(self, number: int, work: _Work, response: _Response) -> None:
        """Ends a silence that is too long."""
        if time.monotonic() < response.until:
            return
        if response.ending:  # complete, but the endpoint does not say so
            response.ending = False
            response.until = time.monotonic() + self._timeout_s
            response.hang_up()
            return
        silence = f"the endpoint said nothing for {self._timeout_s:g} s"
        self._fail(number, work, response.trouble or silence)

    def _begin(self, number: int, work: _Work) -> None:
        lines = ["Transcript:", self._transcript.text() or "(nothing yet)", ""]
        lines += [f"Request: {work.request}"]
        lines += [f"Change of the request: {words}" for words in work.updates]
        lines += [f"Called already: {one}" for one in work.made]
        work.messages = [
            {"role": "system", "content": self._prompt},
            {"role": "user", "content": "\n".join(lines)},
        ]
        self._ask(number, work)

    def _ask(self, number: int, work: _Work) -> None:
        """Sends the messages on a new thread."""
        work.requests += 1
        if work.requests > _REQUESTS or not self._room.acquire(blocking=False):
            why = "too many calls" if work.requests > _REQUESTS else "too many requests at once"
            self._fail(number, work, why)
            return
        work.rest, work.said = "", False
        work.response = _Response(time.monotonic() + self._timeout_s)
        threading.Thread(
            target=self._request,
            args=(work.response, list(work.messages)),
            name=f"chat {number}",
            daemon=True,
        ).start()

    def _take(self, number: int, work: _Work, response: _Response, kind: str, value: Any) -> None:  # noqa: ANN401
        if kind == TEXT:
            words, work.rest = complete(work.rest + value)
            self._say(number, work, words)
        elif kind == THINKING:
            self.emit(number, THINKING, value)
        elif kind == ENDING:
            response.ending = True
            response.until = time.monotonic() + min(_GRACE_S, self._timeout_s)
        elif kind == ANSWER:
            work.response = None
            self._say(number, work, work.rest)
            if value.calls:
                self._start_calls(number, work, value)
            elif work.said:
                self.emit(number, DONE)
            else:
                self._fail(number, work, "the endpoint said nothing")
        elif kind == _ERROR:
            self._fail(number, work, value)

    def _say(self, number: int, work: _Work, text: str) -> None:
        words = speakable(text)
        if words:
            work.said = True
            self.emit(number, TEXT, words)

    def _fail(self, number: int, work: _Work, why: str) -> None:
        _stop(work)
        self.emit(number, FAILED, why)

    def _start_calls(self, number: int, work: _Work, answer: Answer) -> None:
        for one in answer.calls:
            one.id = _new_id(one, work.ids)
        work.messages.append(answer.to_json())
        for one in answer.calls:
            text = one.to_text()
            work.calls.append((one.id, text, self.call(number, self._toolbox, text)))

    def _answer_calls(self, number: int, work: _Work) -> None:
        for one, text, call in work.calls:
            self.emit(number, RESULT, call.result())
            work.made.append(f"{text} -> {call.result()}")
            work.messages.append({"role": "tool", "tool_call_id": one, "content": call.result()})
        work.calls = []
        self._ask(number, work)

    def _request(self, response: _Response, messages: list[Any]) -> None:
        """Receives a response, on its own thread."""
        self._local.response = response
        try:
            with contextlib.ExitStack() as stack:
                parts = self._open(response, messages, stack).iter_bytes()
                wanted = itertools.takewhile(lambda _: not response.dropped.is_set(), parts)
                reader = ResponseReader(lambda *piece: response.pieces.put(piece))
                reader.read(read_events(wanted))
        except Exception as error:  # an endpoint may send anything
            response.pieces.put((_ERROR, _reason(error)))
        finally:
            response.connection = None  # another response may use it
            self._room.release()

    def _open(self, response: _Response, messages: list[Any], stack: contextlib.ExitStack) -> Any:  # noqa: ANN401
        """Sends the messages until they are taken; gives the response once it has begun."""
        request: dict[str, Any] = {"model": self._model, "messages": messages, "stream": True}
        if schemas := self._toolbox.schemas():
            request["tools"] = schemas
        create = self._client.chat.completions.with_streaming_response.create
        for retry in itertools.count():
            try:
                begun = stack.enter_context(create(**request))
                response.trouble = ""
                return begun
            except (openai.APIConnectionError, openai.APIStatusError) as error:
                response.trouble = _reason(error)
                wait = _wait_s(error, retry, response.until - time.monotonic())
                if wait is None or response.dropped.wait(wait):
                    raise

    def _on_headers(self, arrived: Any) -> None:  # noqa: ANN401
        """Notes the connection of a response that begins, an error's or a redirection's too."""
        response: _Response = self._local.response
        stream = arrived.extensions.get("network_stream")
        response.connection = stream and stream.get_extra_info("socket")
        if response.dropped.is_set():
            response.hang_up()


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, openai.APIStatusError):
        text = f"{error.status_code} {error.response.text}"  # the client leaves some texts out
    return f"{type(error).__name__}: {text[:150]}"


def _wait_s(error: openai.APIError, retry: int, left_s: float) -> float | None:
    """Seconds before the next retry; None if there is none, or no time for it."""
    if retry >= _RETRIES or isinstance(error, openai.APITimeoutError):
        return None
    wait = _RETRY_S * 2**retry
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in _RETRIED and error.status_code < 500:
            return None
        with contextlib.suppress(ValueError):  # a date
            wait = max(float(error.response.headers.get("retry-after", "")), 0.0)
    return wait if wait < left_s else None


def _new_id(call: ChatCall, used: set[str]) -> str:
    """The endpoint's id of a call if it is new, or else one that every endpoint takes."""
    numbered = (f"call{number:05}" for number in itertools.count(len(used)))
    new = next(one for one in itertools.chain([call.id], numbered) if one and one not in used)
    used.add(new)
    return new


def _stop(work: _Work) -> None:
    if work.response is not None:
        work.response.dropped.set()
        work.response.hang_up()
        work.response = None
    for _, _, call in work.calls:
        call.cancel()
