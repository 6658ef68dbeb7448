"""`ChatAgent`: any chat endpoint that speaks OpenAI's protocol, as the reasoner of a conversation.

It follows the talk as a transcript of what was heard and said. Each request to the endpoint streams
on a thread of its own; `ThreadedAgent`'s thread picks up what has come.
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
_TRANSCRIPT = 4_000  # characters
_ANSWER = 2_000  # characters
_ROUNDS = 8  # requests to the endpoint for one delegation
_CALLS = 8  # of one round
_ARGUMENTS = 10_000  # characters
_AT_ONCE = 16  # threads; those included that hang until their time is over
_REMEMBERED = 32  # delegations; of more, those that are done are forgotten


@dataclasses.dataclass
class _Round:
    """What one streamed response brings; filled by its thread."""

    pieces: queue.SimpleQueue  # of (kind, text or calls)
    dropped: threading.Event  # nobody wants it any more


@dataclasses.dataclass
class _Work:
    """One delegation."""

    request: str
    updates: list[str] = dataclasses.field(default_factory=list)
    made: list[str] = dataclasses.field(default_factory=list)  # calls and their results, in words
    messages: list[Any] = dataclasses.field(default_factory=list)
    rounds: int = 0
    round: _Round | None = None
    calls: list[tuple[str, str, ToolCall]] = dataclasses.field(default_factory=list)
    rest: str = ""  # of a word that is not whole yet
    said: int = 0  # characters


_CALL, _FINISHED, _ERROR = "calls", "finished", "error"  # pieces, beside TEXT and THINKING


class ChatAgent(ThreadedAgent):
    """A `BackgroundAgent` that asks a chat endpoint."""

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
        """Makes an agent; nothing is sent before it is asked.

        Args:
          model: The endpoint's name of a model.
          toolbox: What it may call.
          decode: Words of ids of the live model, such as its `tokenizer.decode`.
          base_url: Of the endpoint; None: that of OPENAI_BASE_URL, or OpenAI's.
          api_key: None: that of OPENAI_API_KEY.
          prompt: Tells it what to do.
          timeout_s: How long the endpoint may keep silent.
          keep: Micro-turns that the transcript goes back.

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
        """See `ThreadedAgent`; calls that were made stay made, and the endpoint is told."""
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
            while work.round is not None:
                try:
                    kind, value = work.round.pieces.get_nowait()
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
        """Sends the messages, on a thread of its own."""
        work.rounds += 1
        if work.rounds > _ROUNDS or not self._room.acquire(blocking=False):
            why = "too many calls" if work.rounds > _ROUNDS else "too many requests at once"
            self._fail(number, work, why)
            return
        work.round = _Round(queue.SimpleQueue(), threading.Event())
        threading.Thread(
            target=self._request,
            args=(work.round, list(work.messages)),
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
            work.round = None
            self._start_calls(number, work, value)
        else:
            work.round = None
            self._say(number, work, " ")
            if work.said:
                self.emit(number, DONE)
            else:
                self._fail(number, work, "the endpoint said nothing")

    def _say(self, number: int, work: _Work, text: str) -> None:
        """Whole words go out as they come."""
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

    # On the thread of a request.

    def _request(self, round: _Round, messages: list[Any]) -> None:
        try:
            schemas: list[Any] = self._toolbox.schemas()
            stream = self._client.chat.completions.create(
                model=self._model,
                messages=messages,
                tools=schemas or openai.omit,
                stream=True,
            )
            with stream:
                _read(stream, round)
        except Exception as error:  # whatever an endpoint sends, or does not
            round.pieces.put((_ERROR, f"{type(error).__name__}: {str(error)[:150]}"))
        finally:
            self._room.release()


def _read(stream: Any, round: _Round) -> None:  # noqa: ANN401
    """Takes one streamed response apart.

    Raises:
      ValueError: It is none, or is cut off.
    """
    calls: dict[int, list[str]] = {}
    length, reason = 0, None
    for chunk in stream:
        if round.dropped.is_set():
            return
        choices = getattr(chunk, "choices", None)
        if not choices:
            continue
        delta = choices[0].delta
        content, reasoning = delta.content, getattr(delta, "reasoning_content", None)
        for kind, text in ((TEXT, content), (THINKING, reasoning)):
            if isinstance(text, str) and text:
                round.pieces.put((kind, text[: _ANSWER - length]))
                length += len(text)
        for part in delta.tool_calls or ():
            _add_call(calls, part)
        reason = choices[0].finish_reason or reason
        if reason or length >= _ANSWER:
            break
    if reason not in ("stop", "length", "tool_calls", "function_call") and length < _ANSWER:
        raise ValueError("the stream ended early" if reason is None else f"ended by {reason}")
    made = [(one, name, given) for one, name, given in calls.values()]
    round.pieces.put((_CALL, made) if made else (_FINISHED, ""))


def _add_call(calls: dict[int, list[str]], part: Any) -> None:  # noqa: ANN401
    call = calls.setdefault(int(part.index), [f"call_{part.index}", "", ""])
    call[0] = part.id or call[0]
    if part.function is not None:
        call[1] += part.function.name or ""
        call[2] += part.function.arguments or ""
    if len(calls) > _CALLS or len(call[2]) > _ARGUMENTS:
        raise ValueError("too many calls, or too long ones")


def _call_text(name: str, arguments: str) -> str:
    """A call as `Toolbox.start` takes it; arguments that are no JSON object are refused there."""
    try:
        return json.dumps({"tool": name} | json.loads(arguments or "{}") | {"tool": name})
    except (ValueError, TypeError, RecursionError):
        return arguments


def _stop(work: _Work) -> None:
    if work.round is not None:
        work.round.dropped.set()
        work.round = None
    for _, _, call in work.calls:
        call.cancel()


def speakable(text: str) -> str:
    """Words as the live model has them: lower case, without punctuation."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.lower()).split())


class Transcript:
    """What was heard and what was said aloud, in words."""

    def __init__(self, decode: Callable[[Sequence[int]], str], keep: int) -> None:
        """Begins empty.

        Args:
          decode: Words of ids.
          keep: Micro-turns that it goes back.
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
        """Follows one micro-turn; spans of control tokens are not said."""
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
        """One line for each speaker in a row, the last `_TRANSCRIPT` characters."""
        lines: list[tuple[str, list[int]]] = []
        for _, speaker, token in self._words:
            if not lines or lines[-1][0] != speaker:
                lines.append((speaker, []))
            lines[-1][1].append(token)
        text = "\n".join(f"{speaker}: {self._decode(ids)}" for speaker, ids in lines)
        return text[-_TRANSCRIPT:]
