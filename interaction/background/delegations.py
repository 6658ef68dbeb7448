"""Bookkeeping of delegations, between the control tokens of a live model and a background agent.

It runs on the driver's thread and never waits. A correction or a cancellation is for the newest
delegation that runs or was told a moment ago. What comes too late for it is answered by `SORRY`,
for the live model has said "okay" already.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from interaction import logs
from interaction.background.agent import (
    CALL,
    DONE,
    FAILED,
    RESULT,
    TEXT,
    THINKING,
    BackgroundAgent,
    Event,
    MicroTurn,
    check_agent,
)
from interaction.background.toolbox import clean_text
from interaction.types import Note, Special

_log = logging.getLogger(__name__)
SORRY = "sorry that did not work"
LIMIT_S = 120.0  # default time limit of an agent, without its tool calls, s
CALLS_LIMIT_S = 90_000.0  # the same of tool calls, s; a timer may last a day
# Kinds of notes beside those of an agent's events. GIVEN: the live model has read all words.
ASKED, UPDATED, CANCELLED, GIVEN, IGNORED = "asked", "updated", "cancelled", "given", "ignored"
MOMENT = 100  # micro-turns for which a delegation whose words were given is one just told
TYPED = 0  # number of text that comes from outside; delegations count from 1
_LONGEST_REQUEST = 200  # tokens
_CORRECTIONS = 8  # newest corrections of a request that are kept
_LONGEST_ANSWER = 500  # tokens
_LONGEST_TEXT = 4_000  # characters of an event
_AT_ONCE = 8  # most running delegations; further ones fail
_WAITING = 32  # most unfinished delegations and typed texts; further requests are ignored
_EVENTS = 64  # most events that are handled in a micro-turn
_BACKLOG = 3_000  # most events that wait; all of them fit one entry of a record


class Words(Protocol):
    """The methods of a tokenizer that are needed here."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


@dataclasses.dataclass
class Delegation:
    """One request and its result."""

    number: int
    request: str  # "" for the answer to a correction or cancellation that came too late
    updates: list[str] = dataclasses.field(default_factory=list)
    asked: bool = False  # the agent has the request
    called: bool = False  # a tool was called, which must not happen again
    calling: int = 0  # calls without a result yet
    worked_s: float = 0.0  # time of the agent's work without tool calls, s
    called_s: float = 0.0  # time of tool calls, s
    due: list[int] = dataclasses.field(default_factory=list)  # tokens that wait for the live model
    length: int = 0  # tokens of the answer so far
    begun: bool = False  # the live model was given some tokens
    ended: bool = False  # the answer is complete
    text: str = ""  # words of the answer, while all are needed to decide whether they can be said
    newest: int = 0  # micro-turn of its request, its last correction, or its last words


class Delegations:
    """All delegations of one conversation."""

    def __init__(
        self,
        agent: BackgroundAgent | None,
        words: Words,
        limit_s: float = LIMIT_S,
        calls_limit_s: float = CALLS_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
        says: Callable[[str], bool] | None = None,
    ) -> None:
        """Starts without delegations.

        Args:
          agent: The background agent; with None every delegation fails.
          words: Tokenizer of the live model.
          limit_s: Time limit of the agent for one delegation, without its tool calls, s.
          calls_limit_s: Time limit of the tool calls of one delegation, including timers, s.
          clock: Returns a time in seconds.
          says: Whether the live model can say a whole result; one that it cannot say fails. None:
            it can say anything.

        Raises:
          ValueError: The agent is something else, belongs to a conversation already, or was closed,
            or the live model cannot even say `SORRY`.
        """
        check_agent(agent)
        if says is not None and not says(SORRY):  # the first call may take long
            raise ValueError(f"says: got False for {SORRY!r}, which every live model needs; add it")
        if agent is not None:
            agent.attach()
        self._agent = agent
        self._says = says
        self._words = words
        self._limits = limit_s, calls_limit_s
        self._clock = clock
        self._seen = clock()
        self._raised = False
        self._backlog: collections.deque[Event] = collections.deque()
        self._notes: list[Note] = []
        # The fields of `saved`:
        self._last = 0
        self._turn = 0  # micro-turns so far
        self._open: dict[int, Delegation] = {}  # unfinished delegations
        self._told: dict[int, Delegation] = {}  # those whose words were given a moment ago
        self._ready: list[int] = []  # delegations with tokens to give, in order of arrival
        self._floor: int | None = None  # the delegation whose tokens are given without a break
        self._span: tuple[int, list[int]] | None = None  # opening token, and words after it

    @property
    def running(self) -> list[int]:
        """Delegations whose result has not been given completely."""
        return [number for number in self._open if number != TYPED]

    def notes(self) -> list[Note]:
        """The notes since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _note(self, number: int, kind: str, text: str = "") -> None:
        self._notes.append(Note(time.time(), number, kind, clean_text(text[:_LONGEST_TEXT])))

    # Text for the live model.

    def detach(self) -> None:
        """Gives the agent back, before the first micro-turn."""
        if self._agent is not None:
            self._agent.detach()

    def type(self, text: str) -> None:
        """Queues text from outside for the live model.

        Raises:
          ValueError: The text is too long, or too much text waits.
        """
        ids = self._encode(text)
        unit = self._open.get(TYPED) or Delegation(TYPED, "", ended=True)
        if len(unit.due) + len(ids) > _LONGEST_ANSWER or len(text) > _LONGEST_TEXT:
            raise ValueError(
                f"text: got {len(ids)} tokens more while {len(unit.due)} wait, wanted at most "
                f"{_LONGEST_ANSWER}; send it in parts"
            )
        if ids:
            self._open[TYPED] = unit
            self._give(unit, ids)

    def take(self, slots: int) -> np.ndarray | None:
        """The next tokens for the live model.

        Args:
          slots: Most tokens.

        Returns:
          int32[slots], tokens of one delegation, PAD where empty. None if no tokens wait, or while
          the live model writes a request, which may correct the waiting tokens.
        """
        if self._span is not None and len(self._span[1]) <= _LONGEST_REQUEST:
            return None
        if self._floor is not None and self._ready:
            idle = self._open[self._floor]
            if idle.calling and not idle.due and not idle.ended:
                # Closes its words so far: a tool may take long, and other delegations wait.
                self._floor = None
                return np.array([Special.END_DELEGATE] + [Special.PAD] * (slots - 1), np.int32)
        if self._floor is None and self._ready:
            self._floor = self._ready.pop(0)
        unit = None if self._floor is None else self._open[self._floor]
        if unit is None or not unit.due:
            return None
        ids, unit.due = unit.due[:slots], unit.due[slots:]
        unit.begun, unit.newest = True, self._turn
        if unit.ended and not unit.due:
            self._drop(unit.number)
            self._note(unit.number, GIVEN)
            self._told = self._just_told() | ({unit.number: unit} if unit.request else {})
        return np.array(ids + [Special.PAD] * (slots - len(ids)), np.int32)

    def _give(self, unit: Delegation, ids: list[int]) -> None:
        unit.due += ids
        if ids and unit.number != self._floor and unit.number not in self._ready:
            self._ready.append(unit.number)

    def _drop(self, number: int) -> None:
        del self._open[number]
        self._withdraw(number)
        if self._floor == number:
            self._floor = None

    def _withdraw(self, number: int) -> None:
        if number in self._ready:
            self._ready.remove(number)

    def _encode(self, text: str) -> list[int]:
        """Token ids of a text, without control tokens."""
        ids = self._words.encode(clean_text(text[:_LONGEST_TEXT]))
        return [one for one in ids if one >= Special.COUNT]

    # The agent.

    def observe(self, turn: MicroTurn) -> None:
        """Passes a micro-turn to the agent."""
        self._tell("observe", turn)

    def close(self) -> None:
        """Closes the agent and handles its last events."""
        self._tell("close")
        self.collect(every=True)

    def _tell(self, method: str, *args: Any) -> Any:  # noqa: ANN401
        """Calls the agent; if it raises, all running delegations fail."""
        if self._agent is None:
            return None
        try:
            answer = getattr(self._agent, method)(*args)
            self._raised = False
            return answer
        except Exception as error:
            if not self._raised:
                logs.warn(_log, "background agent raised in %s", method, exc_info=True)
            self._raised = True
            for one in list(self._open.values()):
                if not one.ended:
                    self._fail(one, f"the agent raised {type(error).__name__}")
            return None

    def collect(self, every: bool = False) -> None:
        """Handles events of the agent, and fails delegations beyond a time limit.

        Args:
          every: Handles all events and checks no limit; otherwise at most 64 events.
        """
        events = self._tell("events")
        if isinstance(events, list):
            self._backlog.extend(one for one in events if isinstance(one, Event))
        if len(self._backlog) > _BACKLOG:
            self._backlog.clear()
            for one in list(self._open.values()):
                if not one.ended:
                    self._fail(one, "the agent sent too many events")
        for _ in range(len(self._backlog) if every else min(len(self._backlog), _EVENTS)):
            self._handle(self._backlog.popleft())
        if every:  # the conversation ends or is saved, so its time does not count
            return
        now = self._clock()
        passed, self._seen = now - self._seen, now
        for one in list(self._open.values()):
            if not one.ended:
                self._age(one, passed)

    def _age(self, one: Delegation, passed: float) -> None:
        limit_s, calls_limit_s = self._limits
        if one.calling > 0:
            one.called_s += passed
        else:
            one.worked_s += passed
        if one.worked_s > limit_s or one.called_s > calls_limit_s:
            self._tell("cancel", one.number)
            if not one.ended:
                self._fail(one, "it took too long")

    def _handle(self, event: Event) -> None:
        number, kind, text = event
        if not isinstance(number, int) or not isinstance(text, str) or not 0 < number <= self._last:
            return
        one = self._open.get(number)
        if kind in (THINKING, CALL, RESULT):
            self._note(number, kind, text)
        if one is not None and kind == CALL:
            one.called, one.calling = True, one.calling + 1
        elif one is not None and kind == RESULT:
            one.calling = max(0, one.calling - 1)
        if one is None or one.ended:
            return
        if kind == TEXT and self._says is not None:
            one.text = f"{one.text} {text}".strip()[:_LONGEST_TEXT]
        elif kind == TEXT:
            self._note(number, kind, text)
            self._say(one, text)
        elif kind == DONE:
            self._done(one)
        elif kind == FAILED:
            self._fail(one, text)

    def _done(self, one: Delegation) -> None:
        if self._says is not None and one.text:
            self._note(one.number, TEXT, one.text)
            if not self._says(one.text):
                self._fail(one, "the live model was not trained to say these words")
                return
            self._say(one, one.text)
        self._note(one.number, DONE)
        if not one.length:
            self._fail(one, "the answer has no words")
        elif not one.ended:
            self._finish(one)

    def _say(self, one: Delegation, text: str) -> None:
        ids = self._encode(text)[: _LONGEST_ANSWER - one.length]
        one.length += len(ids)
        self._give(one, ids)
        if one.length == _LONGEST_ANSWER:
            self._tell("cancel", one.number)
            if not one.ended:
                self._finish(one)

    def _finish(self, one: Delegation) -> None:
        one.ended = True
        self._give(one, [Special.END_DELEGATE])

    def _fail(self, one: Delegation, why: str) -> None:
        """Replaces the words that wait by the sentence `SORRY`."""
        self._note(one.number, FAILED, why)
        one.due.clear()
        self._give(one, self._encode(SORRY))
        self._finish(one)

    # Control tokens.

    def read(self, token: int) -> None:
        """Takes the text-out token of the next micro-turn."""
        self._turn += 1
        if token >= Special.COUNT:
            if self._span is not None and len(self._span[1]) <= _LONGEST_REQUEST:
                self._span[1].append(token)
            return
        span, self._span = self._span, None
        if token in (Special.DELEGATE, Special.UPDATE):
            self._span = token, []
        if span is not None and token != Special.END_DELEGATE:
            self._note(0, IGNORED, "a request that was not finished")
        elif span is not None:
            self._end_span(*span)
        if token == Special.CANCEL:
            self._cancel()

    def _end_span(self, opening: int, ids: list[int]) -> None:
        words = self._words.decode(ids)
        if not words or len(ids) > _LONGEST_REQUEST:
            why = "without words" if not words else "that is too long"
            self._note(0, IGNORED, f"a request {why}")
        elif opening == Special.DELEGATE:
            self._ask(words)
        else:
            self._correct(words)

    def _ask(self, words: str) -> None:
        one = self._new(words)
        if one is not None:
            self._note(one.number, ASKED, words)
            self._start(one)

    def _new(self, words: str) -> Delegation | None:
        """A new delegation; None while too many are unfinished."""
        if len(self._open) >= _WAITING:
            self._note(0, IGNORED, f"too many delegations: {words}")
            return None
        self._last += 1
        one = self._open[self._last] = Delegation(self._last, words, newest=self._turn)
        return one

    def _refused(self) -> str:
        """Why the agent cannot have another delegation, "" if it can."""
        if self._agent is None:
            return "no background agent"
        return "too many delegations at once" if len(self.running) > _AT_ONCE else ""

    def _start(self, one: Delegation) -> None:
        why = self._refused()
        if why:
            self._fail(one, why)
        else:
            one.asked = True
            self._tell("ask", one.number, one.request)

    def _just_told(self) -> dict[int, Delegation]:
        told = self._told.items()
        return {number: one for number, one in told if self._turn - one.newest <= MOMENT}

    def _newest(self) -> list[Delegation]:
        """The delegations that run or were told a moment ago, the newest last."""
        found = [*self._open.values(), *self._just_told().values()]
        found = [one for one in found if one.request]
        return sorted(found, key=lambda one: (one.newest, one.number))

    def _correct(self, words: str) -> None:
        """Corrects the newest delegation that the words fit; one that was told runs again."""
        found = [
            one for one in self._newest() if self._tell("fits", one.request, words) is not False
        ]
        if not found:
            self._too_late(UPDATED, words, "there is nothing that it can correct")
            return
        one = found[-1]
        self._note(one.number, UPDATED, words)
        if self._told.pop(one.number, None) is not None:
            self._open[one.number] = one
            why = self._refused()
            if why:
                self._fail(one, why)
                return
            one.asked = True
        if not one.asked:
            return
        one.newest = self._turn
        one.updates = [*one.updates, words][-_CORRECTIONS:]
        self._clear(one)
        one.ended, one.calling, one.worked_s = False, 0, 0.0
        self._tell("update", one.number, one.request, one.updates)

    def _clear(self, one: Delegation) -> None:
        """Forgets the words of a delegation that were not given."""
        one.due.clear()
        one.length, one.text = 0, ""
        self._withdraw(one.number)

    def _cancel(self) -> None:
        """Drops the newest delegation, unless it was told: then nothing is dropped."""
        found = self._newest()
        if not found:
            self._note(0, IGNORED, "a cancel without a delegation")
            return
        one = found[-1]
        if one.number in self._told:
            self._too_late(CANCELLED, "", f"delegation {one.number} was told already")
            return
        self._drop(one.number)
        self._note(one.number, CANCELLED)
        self._tell("cancel", one.number)

    def _too_late(self, kind: str, words: str, why: str) -> None:
        """Answers a correction or a cancellation that reaches nothing."""
        one = self._new("")
        if one is not None:
            self._note(one.number, kind, words)
            self._fail(one, why)

    # A conversation as a file.

    def saved(self) -> dict[str, Any]:
        """The state of all delegations, in types that MessagePack has."""
        return {
            "last": self._last,
            "turn": self._turn,
            "open": [dataclasses.asdict(one) for one in self._open.values()],
            "told": [dataclasses.asdict(one) for one in self._told.values()],
            "ready": list(self._ready),
            "floor": self._floor,
            "span": self._span,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Restores what `saved` returned, after the agent has observed the record.

        Running delegations are started again, except those that had called a tool or whose words
        were given in part: their answer is the sentence `SORRY`.

        Raises:
          ValueError, TypeError, KeyError: The value is not a result of `saved`.
        """
        self._last, self._turn = int(saved["last"]), int(saved["turn"])
        self._open = {one["number"]: Delegation(**one) for one in saved["open"]}
        self._told = {one["number"]: Delegation(**one) for one in saved["told"]}
        self._ready, self._floor = list(saved["ready"]), saved["floor"]
        span = saved["span"]
        self._span = None if span is None else (int(span[0]), list(span[1]))
        for one in list(self._open.values()):
            if one.ended:
                continue
            if one.called or one.begun or self._agent is None:
                self._fail(one, "it was running when the conversation was saved")
                continue
            self._clear(one)
            self._tell("ask", one.number, one.request)
            if one.updates:
                self._tell("update", one.number, one.request, one.updates)
