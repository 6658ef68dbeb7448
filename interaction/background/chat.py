"""`ChatAgent`: a background agent that reasons with a chat endpoint of OpenAI's protocol.

It keeps a transcript of both sides of the conversation. Each response of the endpoint streams on
its own thread; the thread of `ThreadedAgent` collects the pieces.
"""

import dataclasses
import json
import queue
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from interaction.background.agent import DONE, FAILED, RESULT, TEXT, THINKING, MicroTurn
from interaction.background.threaded import KEEP, ThreadedAgent
from interaction.background.toolbox import Toolbox, ToolCall
from interaction.types import Special

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
_TRANSCRIPT = 4_000  # most characters of the transcript
_ANSWER = 2_000  # most characters of a response
_REQUESTS = 8  # most requests to the endpoint for one delegation
_CALLS = 8  # most calls of one response
_ARGUMENTS = 10_000  # most characters of a call's arguments
_AT_ONCE = 16  # most threads at once, including those that wait for a silent endpoint
_REMEMBERED = 32  # delegations; beyond these the oldest that are done are forgotten


@dataclasses.dataclass
class _Response:
    """A streamed response; its thread adds the pieces."""

    pieces: queue.SimpleQueue  # (kind, text or calls)
    dropped: threading.Event  # the response is not needed any more


@dataclasses.dataclass
class _Work:
    """One delegation."""

    request: str
    updates: list[str] = dataclasses.field(default_factory=list)
    made: list[str] = dataclasses.field(default_factory=list)  # finished calls with results, JSON
    messages: list[Any] = dataclasses.field(default_factory=list)
    requests: int = 0  # requests to the endpoint so far
    response: _Response | None = None  # the response that streams
    # Running calls: id, JSON of the call, call.
    calls: list[tuple[str, str, ToolCall]] = dataclasses.field(default_factory=list)
    rest: str = ""  # beginning of an incomplete word
    said: int = 0  # characters of the answer so far


# Kinds of pieces beside TEXT and THINKING.
_CALL, _FINISHED, _ERROR = "calls", "finished", "error"


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
          timeout_s: Longest silence of the endpoint, s.
          keep: Micro-turns that the transcript covers.

        Raises:
          openai.OpenAIError: There is no key.
        """
        super().__init__(keep)
        self._client = openai.OpenAI(
            base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=0
        )
        self._model = model
        self._toolbox = toolbox
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
            while work.response is not None:
                try:
                    kind, value = work.response.pieces.get_nowait()
                except queue.Empty:
                    break
                self._take(number, work, kind, value)
            if work.calls and all(call.done() for _, _, call in work.calls):
                self._answer_calls(number, work)
        return False

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
        work.response = _Response(queue.SimpleQueue(), threading.Event())
        threading.Thread(
            target=self._request,
            args=(work.response, list(work.messages)),
            name=f"chat {number}",
            daemon=True,
        ).start()

    def _take(self, number: int, work: _Work, kind: str, value: Any) -> None:  # noqa: ANN401
        if kind == TEXT:
            self._say(number, work, value)
        elif kind == THINKING:
            self.emit(number, THINKING, value)
        elif kind == _ERROR:
            self._fail(number, work, value)
        elif kind == _CALL:
            work.response = None
            self._start_calls(number, work, value)
        else:
            work.response = None
            self._say(number, work, " ")
            if work.said:
                self.emit(number, DONE)
            else:
                self._fail(number, work, "the endpoint said nothing")

    def _say(self, number: int, work: _Work, text: str) -> None:
        """Emits complete words at once."""
        *whole, work.rest = re.split(r"\s", work.rest + text)
        words = speakable(" ".join(whole))
        if words:
            work.said += len(words)
            self.emit(number, TEXT, words)

    def _fail(self, number: int, work: _Work, why: str) -> None:
        _stop(work)
        self.emit(number, FAILED, why)

    def _start_calls(self, number: int, work: _Work, calls: list[tuple[str, str, str]]) -> None:
        work.messages.append(
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": one, "type": "function", "function": {"name": name, "arguments": given}}
                    for one, name, given in calls
                ],
            }
        )
        for one, name, given in calls:
            text = _call_text(name, given)
            work.calls.append((one, text, self.call(number, self._toolbox, text)))

    def _answer_calls(self, number: int, work: _Work) -> None:
        for one, text, call in work.calls:
            self.emit(number, RESULT, call.result())
            work.made.append(f"{text} -> {call.result()}")
            work.messages.append({"role": "tool", "tool_call_id": one, "content": call.result()})
        work.calls = []
        self._ask(number, work)

    def _request(self, response: _Response, messages: list[Any]) -> None:
        """Receives a response, on its own thread."""
        try:
            schemas: list[Any] = self._toolbox.schemas()
            stream = self._client.chat.completions.create(
                model=self._model,
                messages=messages,
                tools=schemas or openai.omit,
                stream=True,
            )
            with stream:
                _read(stream, response)
        except Exception as error:  # an endpoint may send anything
            response.pieces.put((_ERROR, f"{type(error).__name__}: {str(error)[:150]}"))
        finally:
            self._room.release()


def _read(stream: Any, response: _Response) -> None:  # noqa: ANN401
    """Splits a stream into the pieces of a response.

    Raises:
      ValueError: The stream is not a response, or is cut off.
    """
    calls: dict[int, list[str]] = {}
    length, reason = 0, None
    for chunk in stream:
        if response.dropped.is_set():
            return
        choices = getattr(chunk, "choices", None)
        if not choices:
            continue
        delta = choices[0].delta
        content, reasoning = delta.content, getattr(delta, "reasoning_content", None)
        for kind, text in ((TEXT, content), (THINKING, reasoning)):
            if isinstance(text, str) and text:
                response.pieces.put((kind, text[: _ANSWER - length]))
                length += len(text)
        for part in delta.tool_calls or ():
            _add_call(calls, part)
        reason = choices[0].finish_reason or reason
        if reason or length >= _ANSWER:
            break
    if reason not in ("stop", "length", "tool_calls", "function_call") and length < _ANSWER:
        raise ValueError("the stream ended early" if reason is None else f"ended by {reason}")
    made = [(one, name, given) for one, name, given in calls.values()]
    response.pieces.put((_CALL, made) if made else (_FINISHED, ""))


def _add_call(calls: dict[int, list[str]], part: Any) -> None:  # noqa: ANN401
    call = calls.setdefault(int(part.index), [f"call_{part.index}", "", ""])
    call[0] = part.id or call[0]
    if part.function is not None:
        call[1] += part.function.name or ""
        call[2] += part.function.arguments or ""
    if len(calls) > _CALLS or len(call[2]) > _ARGUMENTS:
        raise ValueError("too many calls, or too long ones")


def _call_text(name: str, arguments: str) -> str:
    """JSON of a call for `Toolbox.start`, which refuses arguments that are not a JSON object."""
    try:
        return json.dumps({"tool": name} | json.loads(arguments or "{}") | {"tool": name})
    except (ValueError, TypeError, RecursionError):
        return arguments


def _stop(work: _Work) -> None:
    if work.response is not None:
        work.response.dropped.set()
        work.response = None
    for _, _, call in work.calls:
        call.cancel()


def speakable(text: str) -> str:
    """The words of a text as the live model reads them: lower case, without punctuation."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.lower()).split())


class Transcript:
    """The words of both sides: the user transcript, and what the model said aloud."""

    def __init__(self, decode: Callable[[Sequence[int]], str], keep: int) -> None:
        """Makes an empty transcript.

        Args:
          decode: Decodes token ids.
          keep: Micro-turns that it covers.
        """
        self._decode = decode
        self._keep = keep
        self._turn = 0
        self._words: list[tuple[int, str, int]] = []  # micro-turn, speaker, id
        self._inside = False

    def clear(self) -> None:
        """Forgets everything."""
        self._words, self._inside = [], False

    def add(self, turn: MicroTurn) -> None:
        """Adds one micro-turn; words between control tokens are not said aloud and left out."""
        self._turn += 1
        for token in turn.user_transcript:
            if token >= Special.COUNT:
                self._words.append((self._turn, "user", int(token)))
        word = turn.text >= Special.COUNT
        if word and not self._inside:
            self._words.append((self._turn, "assistant", int(turn.text)))
        opens = turn.text in (Special.DELEGATE, Special.UPDATE)
        self._inside = opens or (self._inside and word)
        while self._words and self._words[0][0] <= self._turn - self._keep:
            self._words.pop(0)

    def text(self) -> str:
        """A line for each change of the speaker, cut to the last `_TRANSCRIPT` characters."""
        lines: list[tuple[str, list[int]]] = []
        for _, speaker, token in self._words:
            if not lines or lines[-1][0] != speaker:
                lines.append((speaker, []))
            lines[-1][1].append(token)
        text = "\n".join(f"{speaker}: {self._decode(ids)}" for speaker, ids in lines)
        return text[-_TRANSCRIPT:]
