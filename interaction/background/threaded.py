"""`ThreadedAgent`: the base class of agents that work on a thread.

The calls of the conversation become messages. The thread handles them in order and works in small
pieces between them. An exception there fails the delegations that were running, and nothing else.
"""

import abc
import collections
import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from interaction.background.agent import (
    CALL,
    DONE,
    FAILED,
    KINDS,
    TEXT,
    BackgroundAgent,
    Event,
    MicroTurn,
)
from interaction.background.toolbox import Toolbox, ToolCall

_log = logging.getLogger(__name__)
KEEP = 300  # micro-turns that are repeated after a failure: a minute
IDLE_S = 0.01  # s between calls of `work` while nothing happens
_EVENTS = 1_000  # most events that wait for the conversation; then `emit` waits
_TEXT = 20_000  # characters of an event
_REMEMBERED = 64  # delegations whose first request is remembered after their end
_TURN, _ASK, _UPDATE, _CANCEL = "turn", "ask", "update", "cancel"


class _Message(NamedTuple):
    kind: str
    turn: MicroTurn | None = None
    delegation: int = 0
    words: tuple[str, ...] = ()  # the request, then its corrections
    at: float = 0.0  # s, `time.monotonic` when a request or a correction came


class ThreadedAgent(BackgroundAgent):
    """Implements `BackgroundAgent`; a subclass implements the work of the thread.

    The abstract methods run on the thread, one at a time. The thread starts with the first message,
    which is after the constructor of the subclass. Private names of this class have two
    underscores, so that a subclass can choose any other names.
    """

    def __init__(self, keep: int = KEEP) -> None:
        """Makes an agent; its thread starts later.

        Args:
          keep: Micro-turns that are kept and repeated after a failure. A thread that is further
            behind counts as failed.
        """
        self.__keep = keep
        self.__change = threading.Condition()  # guards the fields up to the blank line
        self.__inbox: collections.deque[_Message] = collections.deque()
        self.__waiting = 0  # micro-turns in the inbox
        self.__skipped: collections.deque[MicroTurn] = collections.deque(maxlen=keep)
        self.__outbox: collections.deque[Event] = collections.deque()
        self.__updates: collections.Counter[int] = collections.Counter()  # updates in the inbox
        self.__closed = False

        self.__thread: threading.Thread | None = None
        # Only the thread uses these:
        self.__kept: collections.deque[MicroTurn] = collections.deque(maxlen=keep)
        self.__running: dict[int, None] = {}
        self.__asked: dict[int, float] = {}  # s, `time.monotonic` of a delegation's first request
        self.__down = False  # the last restart failed

    # Methods that the conversation calls.

    def observe(self, turn: MicroTurn) -> None:
        """See `BackgroundAgent`."""
        self.__put(_Message(_TURN, turn))

    def ask(self, delegation: int, request: str) -> None:
        """See `BackgroundAgent`."""
        self.__put(_Message(_ASK, None, delegation, (request,), time.monotonic()))

    def update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """See `BackgroundAgent`; older words that were not taken yet are dropped."""
        with self.__change:
            self.__updates[delegation] += 1
            kept = [one for one in self.__outbox if not self.__overtaken(one)]
            self.__outbox = collections.deque(kept)
            self.__change.notify_all()
        words = (request, *updates)
        self.__put(_Message(_UPDATE, None, delegation, words, time.monotonic()))

    def cancel(self, delegation: int) -> None:
        """See `BackgroundAgent`."""
        self.__put(_Message(_CANCEL, None, delegation))

    def events(self) -> list[Event]:
        """See `BackgroundAgent`."""
        with self.__change:
            events = list(self.__outbox)
            self.__outbox.clear()
            if events:
                self.__change.notify_all()
        return events

    def close(self) -> None:
        """Ends the thread after its current piece of work; waits for it at most one second."""
        super().close()
        with self.__change:
            self.__closed = True
            self.__change.notify_all()
        if self.__thread is not None and self.__thread is not threading.current_thread():
            self.__thread.join(1.0)

    def __put(self, message: _Message) -> None:
        with self.__change:
            if self.__closed:
                return
            self.__inbox.append(message)
            self.__waiting += message.turn is not None
            if self.__waiting > self.__keep:  # the thread hangs; this bounds the memory
                turns = [one.turn for one in self.__inbox if one.turn is not None]
                self.__skipped.extend(turns)
                self.__inbox = collections.deque(one for one in self.__inbox if one.turn is None)
                self.__waiting = 0
            self.__change.notify_all()
        if self.__thread is None or not self.__thread.is_alive():
            self.__thread = threading.Thread(target=self.__run, name="background", daemon=True)
            self.__thread.start()

    # Methods that a subclass implements.

    @abc.abstractmethod
    def on_turns(self, turns: list[MicroTurn]) -> None:
        """Takes all micro-turns that waited, in order."""

    @abc.abstractmethod
    def on_ask(self, delegation: int, request: str) -> None:
        """Starts a delegation, see `BackgroundAgent.ask`."""

    @abc.abstractmethod
    def on_update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """Corrects a delegation, which may be done, see `BackgroundAgent.update`."""

    @abc.abstractmethod
    def on_cancel(self, delegation: int) -> None:
        """Drops a running delegation."""

    @abc.abstractmethod
    def work(self) -> bool:
        """Does a small piece of work, such as one token, or a check of running calls.

        Returns:
          True if there is more to do at once. Otherwise it is called again after a message, and
          after 10 ms while a delegation runs.
        """

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets everything; called after a failure."""

    # Methods that a subclass uses.

    @property
    def running(self) -> tuple[int, ...]:
        """Running delegations, in the order of their requests."""
        return tuple(self.__running)

    def emit(self, delegation: int, kind: str, text: str = "") -> None:
        """Adds an event; one of a delegation that is not running is dropped.

        Waits while a thousand events have not been taken.

        Args:
          delegation: Number of the delegation.
          kind: One of `agent.KINDS`.
          text: Text of the event.

        Raises:
          ValueError: The kind is unknown.
          RuntimeError: The agent was closed; the exception ends the thread.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, wanted one of {KINDS}; use a constant of agent")
        if delegation not in self.__running:
            return
        if kind in (DONE, FAILED):
            del self.__running[delegation]
        with self.__change:
            self.__change.wait_for(lambda: self.__closed or len(self.__outbox) < _EVENTS)
            if self.__closed:
                raise RuntimeError("the agent is closed")
            event = Event(delegation, kind, text[:_TEXT])
            if not self.__overtaken(event):
                self.__outbox.append(event)

    def call(self, delegation: int, toolbox: Toolbox, call_text: str) -> ToolCall:
        """Emits a CALL and then starts it, so that no call is missing from the record.

        A tool may learn when the delegation was first asked, see `tool`; corrections keep it.

        Args:
          delegation: Number of the delegation.
          toolbox: The tools.
          call_text: JSON of the call, see `Toolbox.start`.
        """
        self.emit(delegation, CALL, call_text)
        return toolbox.start(call_text, self.__asked.get(delegation))

    def __overtaken(self, event: Event) -> bool:
        """Whether an update in the inbox makes the event void; needs the lock."""
        return event.kind in (TEXT, DONE, FAILED) and self.__updates[event.delegation] > 0

    # The thread.

    def __run(self) -> None:
        more = False
        while True:
            messages, skipped = self.__take(more)
            if messages is None:
                return
            try:
                if skipped:
                    self.__kept.extend(skipped)
                    raise RuntimeError(f"more than {self.__keep} micro-turns behind")
                self.__handle(messages)
                more = not self.__down and self.work()
            except BaseException as error:  # the thread continues after every exception
                if self.__closed:
                    return
                _log.warning("background agent failed", exc_info=True)
                more = False
                self.__fail(error, messages)

    def __take(self, more: bool) -> tuple[collections.deque[_Message] | None, list[MicroTurn]]:
        """Takes the messages and skipped micro-turns; waits for some unless there is more work.

        Returns None for the messages when the agent is closed.
        """

        def ready() -> bool:
            return self.__closed or bool(self.__inbox) or bool(self.__skipped)

        with self.__change:
            if not more:
                self.__change.wait_for(ready, IDLE_S if self.__running else None)
            if self.__closed:
                return None, []
            messages, self.__inbox = self.__inbox, collections.deque()
            skipped = list(self.__skipped)
            self.__skipped.clear()
            self.__waiting = 0
        return messages, skipped

    def __handle(self, messages: collections.deque[_Message]) -> None:
        """Handles messages in order and removes each one before handling it."""
        while messages:
            turns = []
            while messages and (turn := messages[0].turn) is not None:
                turns.append(turn)
                messages.popleft()
            if turns:
                self.__observe(turns)
                continue
            message = messages.popleft()
            number = message.delegation
            if message.kind == _ASK:
                self.__begin(number, message.at)
                self.on_ask(number, *message.words)
            elif message.kind == _UPDATE:
                with self.__change:
                    self.__updates[number] -= 1
                    self.__updates += collections.Counter()  # drops zeros
                self.__begin(number, message.at)
                request, *updates = message.words
                self.on_update(number, request, updates)
            elif number in self.__running:
                self.__running.pop(number)
                self.on_cancel(number)

    def __begin(self, number: int, at: float) -> None:
        self.__running[number] = None
        self.__asked.setdefault(number, at)
        ended = [one for one in self.__asked if one not in self.__running]
        for one in ended[:-_REMEMBERED]:
            del self.__asked[one]
        if self.__down:
            self.__recover()

    def __observe(self, turns: list[MicroTurn]) -> None:
        self.__kept.extend(turns)
        if not self.__down:
            self.on_turns(turns)

    def __fail(self, error: BaseException, messages: collections.deque[_Message]) -> None:
        """Fails the running delegations, restarts, and handles the remaining messages."""
        while True:
            reason = f"{type(error).__name__}: {error}"
            with self.__change:  # not `emit`, which may wait
                failed = [Event(one, FAILED, reason[:200]) for one in self.__running]
                self.__outbox.extend(one for one in failed if not self.__overtaken(one))
            self.__running.clear()
            try:
                self.__recover()
            except BaseException:
                _log.warning("background agent is down until its next request", exc_info=True)
            try:
                self.__handle(messages)
                return
            except BaseException as another:
                _log.warning("background agent failed again", exc_info=True)
                error = another

    def __recover(self) -> None:
        """Resets the agent and repeats the kept micro-turns; raises if the reset fails."""
        self.__down = True
        self.reset()
        try:
            self.on_turns(list(self.__kept))
        except BaseException:
            _log.warning("background agent forgets the record", exc_info=True)
            self.__kept.clear()
            self.reset()
        self.__down = False
