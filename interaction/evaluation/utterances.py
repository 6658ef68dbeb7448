"""Finds the utterances of the model, and whether each is an answer or a result."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from interaction.evaluation import activity
from interaction.evaluation.delegation_history import Delegation
from interaction.evaluation.events import TO_MODEL, TURN_S, Event, reply_time
from interaction.evaluation.scoring import ANSWER_WITHIN_S, DETECTABLE_S, TEXT_BEFORE_S, Spoken
from interaction.types import Special

SOUND_AFTER_S = 0.4  # s after an utterance's text in which sound belongs to it


class Utterance(NamedTuple):
    """Text between silent micro-turns."""

    first: int  # its first micro-turn
    last: int  # its last micro-turn
    text: str

    @property
    def start_s(self) -> float:
        """When its first reply starts to play, s."""
        return reply_time(self.first)

    @property
    def end_s(self) -> float:
        """When its last reply has played, s."""
        return reply_time(self.last) + TURN_S

    def sound_s(self, spoken: Spoken) -> float | None:
        """When its first sound plays, s; None if it is not audible."""
        until = self.end_s + SOUND_AFTER_S
        if activity.overlap(spoken.active, self.start_s, until) < DETECTABLE_S - 1e-9:
            return None
        sounds = spoken.active[spoken.active[:, 1] > self.start_s]
        return max(float(sounds[0, 0]), self.start_s)


class Result(NamedTuple):
    """A result that the model has to say."""

    number: int  # number of the delegation
    first: int  # micro-turn in which its first words arrived
    until: int  # micro-turn of the cancellation, or the number of micro-turns
    text: str  # what the model should say


class Said(NamedTuple):
    """An utterance, and what it is."""

    utterance: Utterance
    event: int = -1  # index of the event that it answers, -1 for none
    delegation: int = 0  # number of the delegation whose result it is, 0 for none
    stray: bool = False  # nothing was due; `event` and `delegation` are those of the one before it


def read_utterances(spoken: Spoken) -> list[Utterance]:
    """Finds the utterances with at least one word, in order of time."""
    loud = np.concatenate([[False], spoken.text != Special.SILENT, [False]])
    edges = np.flatnonzero(loud[1:] != loud[:-1]).reshape(-1, 2)
    found = []
    for first, end in edges.tolist():
        ids = [int(one) for one in spoken.text[first:end] if one >= Special.COUNT]
        text = " ".join(spoken.decode(ids).split())
        if text:
            found.append(Utterance(first, end - 1, text))
    return found


def results_of(
    delegations: Sequence[Delegation], turns: int, text: Callable[[Delegation], str]
) -> list[Result]:
    """The results that have arrived, in the order of their arrival.

    Args:
      delegations: The delegations of a conversation.
      turns: Length of the conversation in micro-turns.
      text: Gives what the model should say for a delegation.
    """
    found = [
        Result(one.number, one.arrived, one.cancelled if one.cancelled >= 0 else turns, text(one))
        for one in delegations
        if one.arrived >= 0
    ]
    return sorted(found, key=lambda result: result.first)


def attribute(spoken: Spoken, events: Sequence[Event], results: Sequence[Result]) -> list[Said]:
    """Finds out what each utterance is.

    An utterance with exactly the words of an answer or a result that is due is this answer or
    result. Any other one is the answer to the last event if that has no answer yet and ended less
    than 3 s before, or else the result that waits longest. If nothing is due, it is stray: it
    continues the utterance before it, unless the user has spoken to the model in between.

    Args:
      spoken: What the model said.
      events: Annotation, in order of time.
      results: From `results_of`.
    """
    answered: set[int] = set()
    told: set[int] = set()
    found: list[Said] = []
    for one in read_utterances(spoken):
        due = _due(events, one.start_s, answered)
        waiting = [r for r in results if r.first <= one.first < r.until and r.number not in told]
        exact = [result for result in waiting if result.text == one.text]
        if due >= 0 and (one.text == " ".join(events[due].answer.split()) or not exact):
            answered.add(due)
            found.append(Said(one, event=due))
        elif waiting:
            told.add((exact or waiting)[0].number)
            found.append(Said(one, delegation=(exact or waiting)[0].number))
        else:
            found.append(_stray(one, found, events))
    return found


def _stray(one: Utterance, found: Sequence[Said], events: Sequence[Event]) -> Said:
    if found:
        last = found[-1]
        since = last.utterance.start_s
        if not any(e.kind in TO_MODEL and since < e.start_s < one.start_s for e in events):
            return last._replace(utterance=one, stray=True)
    return Said(one, stray=True)


def _due(events: Sequence[Event], time: float, answered: set[int]) -> int:
    """The last event to the model before `time`, if its answer is due; its index, -1 for none."""
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if event.kind not in TO_MODEL or event.end_s - TEXT_BEFORE_S > time + 1e-9:
            continue
        fresh = time <= event.end_s + ANSWER_WITHIN_S and index not in answered
        return index if event.wants_answer and fresh else -1
    return -1
