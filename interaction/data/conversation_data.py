"""One schema for conversations of any origin: sound, words, text and frames on one clock.

Generators, readers of foreign recordings (`interaction.data.readers`) and records of live
conversations (`interaction.engine.recorded_conversation`) make a `Conversation`. It knows no
tokenizer and no micro-turns; `stored_conversation` converts it to what training reads.

All times are seconds since the first sample. Both sides are as somebody between them hears them: a
reply of the model stands where it plays.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from interaction.data.audio_file import SAMPLE_RATE

VERSION = 1
SLACK_S = 0.1  # s; readers move a time to the end of the sound that is so little beyond it
ARRIVED, ARRIVED_END = "arrived", "arrived_end"
DELEGATE, UPDATE, CANCEL = "delegate", "update", "cancel"
KINDS = {  # of text events, and whether they have words
    ARRIVED: True,  # words that reach the model as text
    ARRIVED_END: False,  # the text that arrived is complete
    DELEGATE: True,  # the model writes a request to the background model
    UPDATE: True,  # the model corrects its request
    CANCEL: False,  # the model cancels its request
}


class Word(NamedTuple):
    """A word as it was spoken."""

    text: str  # without white space
    start: float  # s
    end: float  # s, at least `start`


class TextEvent(NamedTuple):
    """Text that is not spoken."""

    time: float  # s: of an arrival when it is there, of the model's own text when it is written
    kind: str  # one of KINDS
    text: str = ""


class Frame(NamedTuple):
    """A picture that the user shows."""

    time: float  # s
    image: np.ndarray  # uint8[height, width, 3], RGB


class Conversation(NamedTuple):
    """What two sides said. `check` says what is allowed."""

    user: np.ndarray  # int16[n], PCM at 16 kHz
    model: np.ndarray  # int16[n], PCM at 16 kHz
    user_words: tuple[Word, ...] | None  # None: unknown, which is not silence
    model_words: tuple[Word, ...] | None
    user_unknown: tuple[tuple[float, float], ...] = ()  # spans whose user words are unknown
    events: tuple[TextEvent, ...] = ()
    frames: tuple[Frame, ...] = ()
    meta: dict[str, Any] = {}  # in JSON types; nothing in it is trained on  # noqa: RUF012
    version: int = VERSION

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.user) / SAMPLE_RATE


def refuse(where: str, field: str, got: object, wanted: str, fix: str) -> NoReturn:
    """Raises the ValueError of a place, such as a file and a line in it."""
    raise ValueError(f"{where}: {field}: got {got}, wanted {wanted}; {fix}")


def check(conversation: Conversation, where: str) -> Conversation:
    """Refuses a conversation that breaks a rule of the schema.

    Args:
      conversation: Any.
      where: Its place for error messages, such as "calls.jsonl: line 7".

    Returns:
      The same conversation.

    Raises:
      ValueError: Names the place, the field with its index, what came, what was wanted and the fix.
    """
    if conversation.version != VERSION:
        fix = "read its source again with this release"
        refuse(where, "version", conversation.version, str(VERSION), fix)
    _check_sound(conversation, where)
    _check_words(conversation.user_words, "user_words", conversation.seconds, where)
    _check_words(conversation.model_words, "model_words", conversation.seconds, where)
    _check_unknown(conversation, where)
    _check_events(conversation, where)
    _check_frames(conversation, where)
    try:
        json.dumps(conversation.meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        fix = "convert arrays with .tolist() and leave out NaN and Inf"
        refuse(where, "meta", error, "JSON types", fix)
    return conversation


def _check_sound(conversation: Conversation, where: str) -> None:
    for field in ("user", "model"):
        pcm = getattr(conversation, field)
        if not isinstance(pcm, np.ndarray) or pcm.dtype != np.int16 or pcm.ndim != 1:
            got = type(pcm).__name__
            if isinstance(pcm, np.ndarray):
                got = f"{pcm.dtype}{list(pcm.shape)}"
            refuse(where, field, got, "int16[n] at 16 kHz", "convert it with `to_int16`")
    if not len(conversation.user):
        refuse(where, "user", "no samples", "at least one", "leave the conversation out")
    if len(conversation.user) != len(conversation.model):
        got = f"{len(conversation.model)} samples beside {len(conversation.user)} of the user"
        refuse(where, "model", got, "equal lengths", "add silence to the end of the shorter side")


def _check_span(start: object, end: object, seconds: float, where: str, field: str) -> None:
    """Refuses a span of time that is no span or is not inside the sound."""
    real = all(isinstance(time, int | float) and math.isfinite(time) for time in (start, end))
    if not real or not 0 <= start <= end <= seconds:  # pyrefly: ignore
        wanted = f"0 <= start <= end <= {seconds:g} s, the length of the sound"
        refuse(where, field, f"{start!r}..{end!r} s", wanted, "align the words again")


def _check_words(words: Sequence[Word] | None, field: str, seconds: float, where: str) -> None:
    if words is None:
        return
    before = 0.0
    for index, (text, start, end) in enumerate(words):
        name = f"{field}[{index}]"
        if not isinstance(text, str) or text.split() != [text]:
            fix = "split it, or leave out what is no word"
            refuse(where, name, repr(text), "one word without white space", fix)
        _check_span(start, end, seconds, where, f"{name} {text!r}")
        if start < before:
            wanted = f"a start of at least {before:g} s, that of the word before"
            refuse(where, f"{name} {text!r}", f"{start:g} s", wanted, "sort the words by time")
        before = start


def _check_unknown(conversation: Conversation, where: str) -> None:
    if conversation.user_unknown and conversation.user_words is None:
        got = f"{len(conversation.user_unknown)} spans beside user_words=None"
        refuse(where, "user_unknown", got, "none: all is unknown", "pass () for it")
    before = 0.0
    for index, (start, end) in enumerate(conversation.user_unknown):
        name = f"user_unknown[{index}]"
        _check_span(start, end, conversation.seconds, where, name)
        if start < before:
            wanted = f"a start of at least {before:g} s, the end of the span before"
            refuse(
                where, name, f"{start:g} s", wanted, "sort the spans and join those that overlap"
            )
        before = end


def _check_events(conversation: Conversation, where: str) -> None:
    before = 0.0
    for index, (time, kind, text) in enumerate(conversation.events):
        name = f"events[{index}]"
        if kind not in KINDS:
            refuse(where, name, f"kind {kind!r}", f"one of {list(KINDS)}", "rename or drop it")
        if not isinstance(text, str) or bool(text.split()) != KINDS[kind]:
            wanted = "words" if KINDS[kind] else 'text ""'
            refuse(where, f"{name} {kind}", repr(text), wanted, "correct its text or drop it")
        _check_span(time, time, conversation.seconds, where, f"{name} {kind}")
        if time < before:
            wanted = f"at least {before:g} s, the time of the event before"
            refuse(where, f"{name} {kind}", f"{time:g} s", wanted, "sort the events by time")
        before = time


def _check_frames(conversation: Conversation, where: str) -> None:
    before = 0.0
    for index, (time, image) in enumerate(conversation.frames):
        name = f"frames[{index}]"
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            got = type(image).__name__
            if isinstance(image, np.ndarray):
                got = f"{image.dtype}{list(image.shape)}"
            refuse(where, name, got, "uint8[height, width, 3]", "convert it to RGB of 8 bits")
        if image.shape[2] != 3 or not image.size:
            wanted = "[height, width, 3]"
            refuse(where, name, f"shape {list(image.shape)}", wanted, "convert it to RGB")
        _check_span(time, time, conversation.seconds, where, name)
        if time < before:
            wanted = f"at least {before:g} s, the time of the frame before"
            refuse(where, name, f"{time:g} s", wanted, "sort the frames by time")
        before = time


def to_int16(pcm: np.ndarray, where: str, field: str) -> np.ndarray:
    """PCM in the schema's dtype.

    Args:
      pcm: float32[n] in [-1, 1]; what is outside is clipped.
      where: The place, for the error message.
      field: "user" or "model", for the error message.

    Returns:
      int16[n]; exact for samples that were int16 divided by 32768.

    Raises:
      ValueError: There is NaN or Inf in it.
    """
    bad = int(np.sum(~np.isfinite(pcm)))
    if bad:
        fix = "export it again as 16-bit PCM"
        refuse(where, field, f"{bad} samples that are NaN or Inf", "finite PCM", fix)
    return np.clip(np.rint(pcm * np.float32(32_768)), -32_768, 32_767).astype(np.int16)


def clamped(words: Sequence[Word], seconds: float) -> tuple[Word, ...]:
    """Words in order of time, moved into the sound if they are at most `SLACK_S` outside.

    Aligners round times, so the last word of a recording often ends a little after it.
    """

    def inside(time: float) -> float:
        near = min(max(time, 0.0), seconds)
        return near if abs(near - time) <= SLACK_S else time

    ordered = sorted(words, key=lambda word: (word.start, word.end))
    return tuple(Word(text, inside(start), inside(end)) for text, start, end in ordered)


def delayed(conversation: Conversation, seconds: float) -> Conversation:
    """The conversation after some silence of both sides.

    Args:
      conversation: Valid for `check`.
      seconds: Length of the silence in s, rounded to whole samples.
    """
    silence = np.zeros(round(seconds * SAMPLE_RATE), np.int16)
    shift = len(silence) / SAMPLE_RATE

    def later(words: tuple[Word, ...] | None) -> tuple[Word, ...] | None:
        if words is None:
            return None
        return tuple(Word(text, start + shift, end + shift) for text, start, end in words)

    return conversation._replace(
        user=np.concatenate([silence, conversation.user]),
        model=np.concatenate([silence, conversation.model]),
        user_words=later(conversation.user_words),
        model_words=later(conversation.model_words),
        user_unknown=tuple(
            (start + shift, end + shift) for start, end in conversation.user_unknown
        ),
        events=tuple(event._replace(time=event.time + shift) for event in conversation.events),
        frames=tuple(frame._replace(time=frame.time + shift) for frame in conversation.frames),
    )
