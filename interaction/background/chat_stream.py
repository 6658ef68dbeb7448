"""What chat endpoints send: server-sent events, and the response that their chunks make up.

Endpoints differ. Read are the streams of OpenAI's protocol, a JSON document in place of a stream,
and the variants of known servers: thoughts and calls among the words, content that is a list of
parts, a reason for the end that is missing, unknown or early.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from interaction.background.agent import TEXT, THINKING
from interaction.background.chat_calls import CallParts, ChatCall, written_calls
from interaction.background.toolbox import clean_text

# Kinds of pieces beside TEXT and THINKING.
HEARD = "heard"  # a part of a call came
ENDING = "ending"  # probably nothing more comes
ANSWER = "answer"  # the last piece, an `Answer`
_WORDS = 2_000  # most characters of the words of a response
_THOUGHTS = 200_000  # most characters of its thoughts
_WRITTEN = 20_000  # most characters of calls among its words
_BYTES = 50_000_000  # most bytes of it
_LINE = 1_000_000  # most bytes of a line
_GOOD_ENDS = frozenset(("stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence"))
_BAD_ENDS = frozenset(  # what was said is not an answer; after all other reasons it is
    "length max_tokens content_filter error abort cancelled safety recitation blocklist "
    "prohibited_content malformed_function_call insufficient_system_resource network_error "
    "sensitive".split()
)
_CALL = "call"
_TAGS = {  # opening: kind of what follows, closing
    "<think>": (THINKING, "</think>"),
    "<thinking>": (THINKING, "</thinking>"),
    "[THINK]": (THINKING, "[/THINK]"),
    "<tool_call>": (_CALL, "</tool_call>"),
}
_LEAKS = (  # signs of thoughts or calls that cannot be told from words
    *("</think>", "</tool_call>", "<|channel|>", "<|python_tag|>", "<function=", "[TOOL_CALLS]"),
    *("<｜tool▁calls▁begin｜>", "<|tool_calls_section_begin|>"),
)


class StreamEvent(NamedTuple):
    """One event of a stream."""

    value: Any  # parsed JSON
    done: bool = False  # nothing more comes


class Answer(NamedTuple):
    """A complete response."""

    words: str  # as they came, without thoughts and calls
    calls: list[ChatCall]
    reasoning: str  # of the field `reasoning_content`, which some endpoints want back

    def to_json(self) -> dict[str, Any]:
        """The message with its calls for the history."""
        message: dict[str, Any] = {"role": "assistant", "content": clean_text(self.words) or None}
        if self.reasoning:
            message["reasoning_content"] = clean_text(self.reasoning)
        return {**message, "tool_calls": [one.to_json() for one in self.calls]}


def read_events(parts: Iterable[bytes]) -> Iterator[StreamEvent]:
    """Reads a body: server-sent events, or one JSON document.

    Args:
      parts: The body, cut anywhere.

    Yields:
      The events as soon as they are complete. If none is done, the body was cut off.

    Raises:
      ValueError: It is neither of the two, or too long.
    """
    held, kind, is_stream = "", "", False
    other: list[str] = []
    for line in _lines(parts):
        field, _, value = line.partition(":")
        if field == "data":
            is_stream = True
            held += value
            if held.strip().startswith("[DONE]"):
                yield StreamEvent(None, done=True)
                return
            try:
                event = json.loads(held)
            except ValueError:
                held += "\n"  # it may go on in the next line
                continue
            held = ""
            yield StreamEvent({"error": event} if kind == "error" else event)
        elif not line:
            if held.strip():
                raise ValueError(f"got an event that is not JSON: {held[:80]!r}")
            held, kind = "", ""
        elif field == "event":
            kind = value.strip()
        elif field not in ("", "id", "retry"):  # "" is a comment
            other.append(line)
    if other and not is_stream:
        try:
            event = json.loads("\n".join(other))
        except ValueError:
            start = " ".join(other)[:80]
            raise ValueError(f"got neither a stream nor JSON: {start!r}") from None
        yield StreamEvent(event, done=True)


def _lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Lines, which end with LF, CR or both; a byte order mark is left out."""
    rest, total = b"", 0
    for part in parts:
        if total == 0:
            part = part.removeprefix(b"\xef\xbb\xbf")
        total += len(part)
        *whole, rest = re.split(rb"\r\n|\n|\r(?!\Z)", rest + part)
        if total > _BYTES or len(rest) > _LINE:
            raise ValueError("the response is too long")
        yield from (line.decode("utf-8", "replace") for line in whole)
    yield rest.rstrip(b"\r").decode("utf-8", "replace")


class ResponseReader:
    """Puts a response together from its events."""

    def __init__(self, put: Callable[[str, Any], None]) -> None:
        """Makes a reader.

        Args:
          put: Takes the pieces in order: a kind and its value.
        """
        self._put = put
        self._tags = _Tags()
        self._words = ""
        self._reasoning = ""
        self._thoughts = 0  # characters
        self._refusal = ""
        self._ended = False  # a reason for the end came
        self._parts = CallParts()
        self._written: list[str] = []  # calls among the words

    def read(self, events: Iterable[StreamEvent]) -> None:
        """Reads the events and puts the answer at the end.

        Args:
          events: See `read_events`.

        Raises:
          ValueError: They are not an answer, or are cut off.
        """
        done = False
        for event in self._until_ended(events):
            done = event.done
            self._chunk(event.value)
            if len(self._words) >= _WORDS:
                done = True
                break
        if not (done or self._ended):
            raise ValueError("the stream ended early")
        for kind, text in self._tags.split("", last=True):
            self._piece(kind, text)
        if self._refusal:
            raise ValueError(f"the endpoint refused: {self._refusal[:100]}")
        calls = self._parts.calls or [one for text in self._written for one in written_calls(text)]
        self._put(ANSWER, Answer(self._words, calls, self._reasoning))

    def _until_ended(self, events: Iterable[StreamEvent]) -> Iterator[StreamEvent]:
        try:
            yield from events
        except Exception:  # of the network, or garbage
            if not self._ended:
                raise

    def _chunk(self, value: Any) -> None:  # noqa: ANN401
        if not isinstance(value, dict):
            return
        if value.get("error") or value.get("object") == "error":
            raise ValueError(f"the endpoint's error: {_message(value.get('error') or value)}")
        choices = value.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return  # usage, a ping
        empty = not (self._words or self._parts.calls)
        delta = choice.get("delta") or (choice.get("message") if empty else None)
        if isinstance(delta, dict):
            self._delta(delta)
        reason = str(choice.get("finish_reason") or "").lower()
        if reason in _BAD_ENDS:
            raise ValueError(f"ended by {reason}")
        if reason not in ("", "null", "none"):
            self._ended = True
        if reason in _GOOD_ENDS:
            self._put(ENDING, None)

    def _delta(self, delta: dict[str, Any]) -> None:
        for field in ("reasoning_content", "reasoning"):
            thoughts = delta.get(field)
            if isinstance(thoughts, str) and thoughts:
                self._reasoning += thoughts if field == "reasoning_content" else ""
                self._piece(THINKING, thoughts)
                break  # some send both fields with the same thoughts
        if isinstance(delta.get("refusal"), str):
            self._refusal += delta["refusal"]
        for kind, text in _pieces(delta.get("content")):
            for inner, piece in self._tags.split(text) if kind == TEXT else [(kind, text)]:
                self._piece(inner, piece)
        calls = delta.get("tool_calls") or []
        if isinstance(delta.get("function_call"), dict):  # the first form of the protocol
            calls = [{"index": "function_call", "function": delta["function_call"]}]
        for part in calls if isinstance(calls, list) else [calls]:
            if isinstance(part, dict) and self._parts.add(part):
                self._put(HEARD, None)

    def _piece(self, kind: str, text: str) -> None:
        if kind == TEXT:
            text = text[: _WORDS - len(self._words)]
            self._words += text
            self._put(TEXT, text)
        elif kind == THINKING:
            self._thoughts += len(text)
            if self._thoughts > _THOUGHTS:
                raise ValueError(f"more than {_THOUGHTS} characters of thoughts")
            self._put(THINKING, text)
        elif kind == _CALL:
            self._written += [""] * (text == "")
            self._written[-1] += text
            if sum(map(len, self._written)) > _WRITTEN:
                raise ValueError("too many calls, or too long ones")
            self._put(HEARD, None)
        elif kind != "</think>" or self._words.strip():
            raise ValueError(
                f"the endpoint sends {kind!r} among its words; turn on its parsers of reasoning "
                "and of tool calls"
            )


class _Tags:
    """Finds tags in a text that streams, wherever it is cut."""

    def __init__(self) -> None:
        self._rest = ""  # may be the beginning of a tag
        self._kind, self._close = TEXT, ""

    def split(self, text: str, last: bool = False) -> Iterator[tuple[str, str]]:
        """Kinds and texts; an opening gives an empty text, a leak its sign as the kind."""
        self._rest += text
        while True:
            tags = (self._close,) if self._close else (*_TAGS, *_LEAKS)
            found = [(at, tag) for tag in tags if (at := self._rest.find(tag)) >= 0]
            if not found:
                break
            at, tag = min(found)
            yield from self._text(at)
            self._rest = self._rest[len(tag) :]
            if tag in _LEAKS and not self._close:
                yield tag, ""
                continue
            self._kind, self._close = (TEXT, "") if self._close else _TAGS[tag]
            if self._kind == _CALL:
                yield _CALL, ""
        starts = (tag[:size] for tag in tags for size in range(1, len(tag)))
        held = max((len(one) for one in starts if self._rest.endswith(one)), default=0)
        yield from self._text(len(self._rest) - (0 if last else held))

    def _text(self, size: int) -> Iterator[tuple[str, str]]:
        if size:
            yield self._kind, self._rest[:size]
            self._rest = self._rest[size:]


def _pieces(content: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Texts of a content, which is a text or a list of parts."""
    if isinstance(content, str) and content:
        yield TEXT, content
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            yield from ((THINKING, text) for _, text in _pieces(part.get(part["type"])))
        elif isinstance(part, dict):
            yield from _pieces(part.get("text"))


def _message(error: Any) -> str:  # noqa: ANN401
    if isinstance(error, dict):
        error = error.get("message") or error
    return str(error)[:150]
