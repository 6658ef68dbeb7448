"""`ThreadedAgent`: a background agent whose work is done on one thread of its own.

What the conversation says is put down as messages; the thread handles them in order and, between
them, works in small pieces. Whatever goes wrong there ends the delegations that were running, and
nothing else.
"""

import collections
import logging
import threading
from typing import NamedTuple

from interaction.background.agent import CALL, DONE, FAILED, KINDS, TEXT, Event, Turn
from interaction.background.toolbox import Toolbox, ToolCall

_log = logging.getLogger(__name__)
KEEP = 300  # micro-turns that are told again after a crash: a minute
IDLE_S = 0.01
_EVENTS = 1_000  # that wait to be taken; then whoever emits waits
_TEXT = 20_000  # characters of an event
_TURN, _ASK, _UPDATE, _CANCEL = "turn", "ask", "update", "cancel"


class _Message(NamedTuple):
    kind: str
    turn: Turn | None = None
    delegation: int = 0
    words: str = ""


class ThreadedAgent:
    """Implements `BackgroundAgent`; a subclass implements what the thread does.

    The methods that begin with `on_`, `work` and `reset` run on the thread, one at a time. The
    thread starts with the first message, so after the subclass's constructor.
    """

    def __init__(self, keep: int = KEEP) -> None:
        """Makes an agent without a thread yet.

        Args:
          keep: Micro-turns that are kept, to be told again after a crash. A thread that is further
            behind than that has crashed.
        """
        self._keep = keep
        self._change = threading.Condition()  # guards what follows, down to the blank line
        self._inbox: collections.deque[_Message] = collections.deque()
        self._waiting = 0  # turns in the inbox
        self._skipped: collections.deque[Turn] = collections.deque(maxlen=keep)
        self._outbox: collections.deque[Event] = collections.deque()
        self._updates: collections.Counter[int] = collections.Counter()  # that wait
        self._closed = False

        self._thread: threading.Thread | None = None
        # Of the thread:
        self._kept: collections.deque[Turn] = collections.deque(maxlen=keep)
        self._running: dict[int, None] = {}
        self._down = False  # could not be brought up again

    # What the conversation calls.

    def follow(self, turn: Turn) -> None:
        """See `BackgroundAgent`."""
        self._put(_Message(_TURN, turn))

    def ask(self, delegation: int, request: str) -> None:
        """See `BackgroundAgent`."""
        self._put(_Message(_ASK, None, delegation, request))

    def update(self, delegation: int, words: str) -> None:
        """See `BackgroundAgent`; words of before that nobody has taken yet are dropped."""
        with self._change:
            self._updates[delegation] += 1
            kept = [one for one in self._outbox if not self._overtaken(one)]
            self._outbox = collections.deque(kept)
            self._change.notify_all()
        self._put(_Message(_UPDATE, None, delegation, words))

    def cancel(self, delegation: int) -> None:
        """See `BackgroundAgent`."""
        self._put(_Message(_CANCEL, None, delegation))

    def events(self) -> list[Event]:
        """See `BackgroundAgent`."""
        with self._change:
            events = list(self._outbox)
            self._outbox.clear()
            if events:
                self._change.notify_all()
        return events

    def close(self) -> None:
        """Ends the thread after its present piece of work; waits a second at most for it."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _put(self, message: _Message) -> None:
        with self._change:
            if self._closed:
                return
            self._inbox.append(message)
            self._waiting += message.turn is not None
            if self._waiting > self._keep:  # the thread hangs: memory has a bound all the same
                turns = [one.turn for one in self._inbox if one.turn is not None]
                self._skipped.extend(turns)
                self._inbox = collections.deque(one for one in self._inbox if one.turn is None)
                self._waiting = 0
            self._change.notify_all()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="background", daemon=True)
            self._thread.start()

    # What a subclass implements.

    def on_turns(self, turns: list[Turn]) -> None:
        """Follows the record: all micro-turns that waited, in order."""

    def on_ask(self, delegation: int, request: str) -> None:
        """Begins a delegation."""
        raise NotImplementedError

    def on_update(self, delegation: int, words: str) -> None:
        """Changes one; it may just have been done, and then runs again."""
        raise NotImplementedError

    def on_cancel(self, delegation: int) -> None:
        """Drops one that is running."""
        raise NotImplementedError

    def work(self) -> bool:
        """Does a small piece of work, such as a token, or a look at the calls that run.

        Returns:
          True if there is more to do at once. Otherwise it is called again after a message, and
          while a delegation runs also after 10 ms.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets everything, after a crash."""
        raise NotImplementedError

    # What a subclass uses.

    @property
    def running(self) -> tuple[int, ...]:
        """Delegations that are running, in the order in which they were asked."""
        return tuple(self._running)

    def emit(self, delegation: int, kind: str, text: str = "") -> None:
        """Hands over an event; what is not running any more has none.

        Waits while a thousand events have not been taken.

        Raises:
          ValueError: An unknown kind.
          RuntimeError: The agent was closed, and the thread is to end.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, wanted one of {KINDS}; use a constant of agent")
        if delegation not in self._running:
            return
        if kind in (DONE, FAILED):
            del self._running[delegation]
        with self._change:
            self._change.wait_for(lambda: self._closed or len(self._outbox) < _EVENTS)
            if self._closed:
                raise RuntimeError("the agent is closed")
            event = Event(delegation, kind, text[:_TEXT])
            if not self._overtaken(event):
                self._outbox.append(event)

    def call(self, delegation: int, toolbox: Toolbox, call_text: str) -> ToolCall:
        """Emits a call and starts it, in this order: none is made that nobody knows of."""
        self.emit(delegation, CALL, call_text)
        return toolbox.start(call_text)

    def _overtaken(self, event: Event) -> bool:
        """Under the lock: whether an update waits that makes the event void."""
        return event.kind in (TEXT, DONE, FAILED) and self._updates[event.delegation] > 0

    # The thread.

    def _run(self) -> None:
        more = False
        while True:
            messages, skipped = self._take(more)
            if messages is None:
                return
            try:
                if skipped:
                    self._kept.extend(skipped)
                    raise RuntimeError(f"more than {self._keep} micro-turns behind")
                self._handle(messages)
                more = not self._down and self.work()
            except BaseException as error:  # a thread that ends for whatever reason comes back
                if self._closed:
                    return
                _log.warning("background agent failed", exc_info=True)
                more = False
                self._fail(error, messages)

    def _take(self, more: bool) -> tuple[collections.deque[_Message] | None, list[Turn]]:
        """Messages that wait, at least one unless there is work to do; None at the end."""

        def ready() -> bool:
            return self._closed or bool(self._inbox) or bool(self._skipped)

        with self._change:
            if not more:
                self._change.wait_for(ready, IDLE_S if self._running else None)
            if self._closed:
                return None, []
            messages, self._inbox = self._inbox, collections.deque()
            skipped = list(self._skipped)
            self._skipped.clear()
            self._waiting = 0
        return messages, skipped

    def _handle(self, messages: collections.deque[_Message]) -> None:
        """Handles messages in order and removes each before it may fail."""
        while messages:
            turns = []
            while messages and (turn := messages[0].turn) is not None:
                turns.append(turn)
                messages.popleft()
            if turns:
                self._follow(turns)
                continue
            message = messages.popleft()
            number = message.delegation
            if message.kind == _ASK:
                self._begin(number)
                self.on_ask(number, message.words)
            elif message.kind == _UPDATE:
                with self._change:
                    self._updates[number] -= 1
                    self._updates += collections.Counter()  # drops zeros
                self._begin(number)
                self.on_update(number, message.words)
            elif number in self._running:
                self._running.pop(number)
                self.on_cancel(number)

    def _begin(self, number: int) -> None:
        self._running[number] = None
        if self._down:
            self._recover()

    def _follow(self, turns: list[Turn]) -> None:
        self._kept.extend(turns)
        if not self._down:
            self.on_turns(turns)

    def _fail(self, error: BaseException, messages: collections.deque[_Message]) -> None:
        """Ends what was running, starts afresh, and handles the messages that are left."""
        while True:
            reason = f"{type(error).__name__}: {error}"
            with self._change:  # not through emit, which may wait
                failed = [Event(one, FAILED, reason[:200]) for one in self._running]
                self._outbox.extend(one for one in failed if not self._overtaken(one))
            self._running.clear()
            try:
                self._recover()
            except BaseException:
                _log.warning("background agent stays down until it is asked", exc_info=True)
            try:
                self._handle(messages)
                return
            except BaseException as another:
                _log.warning("background agent failed again", exc_info=True)
                error = another

    def _recover(self) -> None:
        """Forgets everything and tells again what is kept; raises if the agent cannot start."""
        self._down = True
        self.reset()
        try:
            self.on_turns(list(self._kept))
        except BaseException:
            _log.warning("background agent forgets the record", exc_info=True)
            self._kept.clear()
            self.reset()
        self._down = False
