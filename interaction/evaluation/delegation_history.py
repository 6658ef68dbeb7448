"""Reads the history of the delegations in a conversation from its record.

Times are numbers of micro-turns. What happens in micro-turn n takes effect when reply n starts to
play, at 0.2 (n + 1) s on the user's clock.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from interaction.background import agent, delegations
from interaction.engine.session_record import Entry
from interaction.types import Note, Special

_TO_SAY = (agent.TEXT, agent.DONE, agent.FAILED)  # notes that come with text for the live model


class Step(NamedTuple):
    """Something that happened to a delegation, from a note of the record."""

    turn: int
    kind: str  # kind of the note, see `interaction.background.delegations`
    text: str


@dataclasses.dataclass
class Delegation:
    """One delegation, and everything that happened to it, in order."""

    number: int
    request: str  # words of the span
    closed: int  # micro-turn of the span's last token
    steps: list[Step] = dataclasses.field(default_factory=list)
    # (micro-turn, token ids) of the result that arrived.
    arrivals: list[tuple[int, tuple[int, ...]]] = dataclasses.field(default_factory=list)

    def turns(self, *kinds: str) -> list[int]:
        """Micro-turns of all steps of these kinds."""
        return [step.turn for step in self.steps if step.kind in kinds]

    @property
    def settled(self) -> int:
        """Micro-turn since which the request is final: that of the last update, or `closed`."""
        return max([self.closed, *self.turns(delegations.UPDATED)])

    @property
    def cancelled(self) -> int:
        """Micro-turn of `<cancel>`, -1 without one."""
        return max(self.turns(delegations.CANCELLED), default=-1)

    @property
    def arrived(self) -> int:
        """First micro-turn in which words of the final request's result arrived, -1 for none."""
        return min((turn for turn, _ in self.arrivals if turn > self.settled), default=-1)

    @property
    def call(self) -> str:
        """JSON of the last call, "" without one."""
        return next((step.text for step in reversed(self.steps) if step.kind == agent.CALL), "")

    @property
    def result(self) -> list[int]:
        """Token ids of the words of the final request's result that arrived."""
        late = (ids for turn, ids in self.arrivals if turn > self.settled)
        return [one for ids in late for one in ids if one >= Special.COUNT]

    def running(self, turn: int) -> bool:
        """Whether it was delegated before a micro-turn, and was neither complete nor cancelled.

        A delegation that was complete runs again after a correction.
        """
        changes = delegations.UPDATED, delegations.GIVEN, delegations.CANCELLED
        before = [step.kind for step in self.steps if step.kind in changes and step.turn < turn]
        return self.closed < turn and before[-1:] in ([], [delegations.UPDATED])

    def given(self, turn: int) -> bool:
        """Whether all words of its result had arrived before a micro-turn."""
        changes = delegations.UPDATED, delegations.GIVEN
        before = [step.kind for step in self.steps if step.kind in changes and step.turn < turn]
        return before[-1:] == [delegations.GIVEN]


def read_delegations(entries: Sequence[Entry]) -> list[Delegation]:
    """The delegations of a record, in the order of their spans.

    A record does not say to which delegation words that arrive belong. This follows from the rule
    of `interaction.background.delegations`: results arrive one after another, in the order in which
    they become ready, and each piece ends with `</delegate>`.
    """
    reader = _Reader()
    for entry in entries:
        reader.read(entry)
    return list(reader.found.values())


class _Reader:
    """Follows a record, and knows to which delegation the next words belong."""

    def __init__(self) -> None:
        self.found: dict[int, Delegation] = {}
        self.ready: list[int] = []  # numbers of delegations with text, in the order of the text
        self.floor: int | None = None  # number of the delegation whose words are arriving

    def read(self, entry: Entry) -> None:
        """Takes a micro-turn: the agent's notes, words that arrive, notes of the model's spans."""
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
