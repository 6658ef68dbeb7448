"""What became of the requests that a conversation handed over, read off its record.

Times are micro-turns: what happens in micro-turn n happens when reply n starts to play, at
0.2 (n + 1) s on the user's clock.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from interaction.background import agent, delegations
from interaction.engine.session_record import Entry
from interaction.types import Note, Special

_TO_SAY = (agent.TEXT, agent.DONE, agent.FAILED)  # notes after which something is to be given


class Step(NamedTuple):
    """Something that happened to a delegation."""

    turn: int
    kind: str  # of a note, see `interaction.background.delegations`
    text: str


@dataclasses.dataclass
class Delegation:
    """One request, and everything that happened to it, in order."""

    number: int
    request: str
    closed: int  # micro-turn whose token closed the span
    steps: list[Step] = dataclasses.field(default_factory=list)
    arrivals: list[tuple[int, tuple[int, ...]]] = dataclasses.field(default_factory=list)

    def turns(self, *kinds: str) -> list[int]:
        """Micro-turns of all steps of these kinds."""
        return [step.turn for step in self.steps if step.kind in kinds]

    @property
    def settled(self) -> int:
        """Micro-turn in which the request took its last form: of the last update, or `closed`."""
        return max([self.closed, *self.turns(delegations.UPDATED)])

    @property
    def cancelled(self) -> int:
        """Micro-turn of `<cancel>`; -1 without one."""
        return max(self.turns(delegations.CANCELLED), default=-1)

    @property
    def arrived(self) -> int:
        """Micro-turn in which words of the last form's result first arrived; -1 if none did."""
        return min((turn for turn, _ in self.arrivals if turn > self.settled), default=-1)

    @property
    def call(self) -> str:
        """Text of the last call, "" without one."""
        return next((step.text for step in reversed(self.steps) if step.kind == agent.CALL), "")

    @property
    def result(self) -> list[int]:
        """Ids of the words that arrived of the last form's result."""
        late = (ids for turn, ids in self.arrivals if turn > self.settled)
        return [one for ids in late for one in ids if one >= Special.COUNT]

    def running(self, turn: int) -> bool:
        """Whether, before a micro-turn, it was asked and its result had not arrived in full."""
        ends = self.turns(delegations.GIVEN, delegations.CANCELLED)
        return self.closed < turn and all(end >= turn for end in ends)


def read_delegations(entries: Sequence[Entry]) -> list[Delegation]:
    """The delegations of a record, in the order in which they were asked.

    Whose words arrive is not in a record; it follows from the order in which results are given:
    one after another, each piece up to its `</delegate>`, see `interaction.background.delegations`.
    """
    reader = _Reader()
    for entry in entries:
        reader.read(entry)
    return list(reader.found.values())


class _Reader:
    """Whose words arrive next."""

    def __init__(self) -> None:
        self.found: dict[int, Delegation] = {}
        self.ready: list[int] = []  # in the order in which they had something to give
        self.floor: int | None = None  # whose words are arriving

    def read(self, entry: Entry) -> None:
        """Takes one micro-turn: what the agent did, what arrived, what the model handed over."""
        before = list(itertools.takewhile(lambda note: note.kind in agent.KINDS, entry.notes))
        for note in before:
            self.take(entry.turn, note)
        if entry.arrived is not None:
            if self.floor is None:
                self.floor = self.ready.pop(0) if self.ready else delegations.TYPED
            if self.floor in self.found:
                ids = tuple(int(one) for one in entry.arrived if one != Special.PAD)
                self.found[self.floor].arrivals.append((entry.turn, ids))
            if Special.END_DELEGATE in entry.arrived:
                self.floor = None
        for note in entry.notes[len(before) :]:
            self.take(entry.turn, note)

    def take(self, turn: int, note: Note) -> None:
        """Takes one note."""
        number = note.delegation
        if note.kind == delegations.ASKED:
            self.found[number] = Delegation(number, note.text, turn)
        elif number in self.found:
            self.found[number].steps.append(Step(turn, note.kind, note.text))
        if note.kind in _TO_SAY and number not in (self.floor, *self.ready):
            self.ready.append(number)
        if note.kind in (delegations.GIVEN, delegations.CANCELLED, delegations.UPDATED):
            self.ready = [one for one in self.ready if one != number]
            if note.kind != delegations.UPDATED and self.floor == number:
                self.floor = None
