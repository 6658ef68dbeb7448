"""`ScriptedAgent`: an agent for tests whose events and their micro-turns stand in a script."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from interaction.background.agent import BackgroundAgent, Event, MicroTurn

DIE = "die"  # kind of a `Line` after which every method raises


class Line(NamedTuple):
    """One event of an answer."""

    after: int  # micro-turns since the line before, or since the request
    kind: str  # kind of the event, or DIE
    text: str = ""


Script = Mapping[str, Iterable[Line]] | Callable[[str], Iterable[Line]]


class ScriptedAgent(BackgroundAgent):
    """A `BackgroundAgent` without a thread; its clock counts the micro-turns that it observes.

    An answer whose last line is neither DONE nor FAILED never ends. `told` lists the calls of its
    methods.
    """

    def __init__(self, script: Script) -> None:
        """Makes an agent.

        Args:
          script: Lines by the words of a request or of an update. The lines of an update replace
            those that are still to come.
        """
        self._script = script if callable(script) else lambda words: script.get(words, ())
        self._now = 0
        self._lines: dict[int, list[tuple[int, Line]]] = {}  # delegation -> (micro-turn, line)
        self._dead = False
        self.told: list[tuple] = []
        self.turns: list[MicroTurn] = []

    def observe(self, turn: MicroTurn) -> None:
        """See `BackgroundAgent`."""
        self._alive()
        self.turns.append(turn)
        self._now += 1

    def ask(self, delegation: int, request: str) -> None:
        """See `BackgroundAgent`."""
        self._alive()
        self.told.append(("ask", delegation, request))
        self._answer(delegation, request)

    def update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """See `BackgroundAgent`."""
        self._alive()
        self.told.append(("update", delegation, request, *updates))
        self._answer(delegation, updates[-1])

    def cancel(self, delegation: int) -> None:
        """See `BackgroundAgent`."""
        self._alive()
        self.told.append(("cancel", delegation))
        self._lines.pop(delegation, None)

    def events(self) -> list[Event]:
        """See `BackgroundAgent`."""
        self._alive()
        events = []
        for delegation, lines in self._lines.items():
            while lines and lines[0][0] <= self._now:
                line = lines.pop(0)[1]
                if line.kind == DIE:
                    self._dead = True
                    self._alive()
                events.append(Event(delegation, line.kind, line.text))
        return events

    def close(self) -> None:
        """See `BackgroundAgent`."""
        super().close()
        self.told.append(("close",))

    def _alive(self) -> None:
        if self._dead:
            raise RuntimeError("the script says that the agent is dead")

    def _answer(self, delegation: int, words: str) -> None:
        at, lines = self._now, []
        for line in self._script(words):
            at += line.after
            lines.append((at, line))
        self._lines[delegation] = lines
