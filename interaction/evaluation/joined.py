"""Joins sessions into one long session, and cuts the replies to it into those to its parts.

The parts follow one another, with a gap of silent micro-turns between two of them. A time in the
long session is the time in the part plus the length of all parts and gaps before it.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interaction.evaluation.events import TURN_S
from interaction.evaluation.rollout import TURN, Rollout

Meta = dict[str, Any]  # the JSON object of a stored session's "meta"

# Fields of events and of notes (entries of "delegations") that are times; negative for none.
EVENT_SECONDS = ("start_s", "end_s", "answer_end_s")
EVENT_TURNS = ("answer_turn", "answer_end_turn")
NOTE_SECONDS = ("cancelled_s", "said_end_s")
NOTE_TURNS = ("closed", "said_turn")
PLACES = ("first third", "middle third", "last third")


def place_name(share: float) -> str:
    """The third of a long session at a share of its length, 0 at the start and 1 at the end."""
    return PLACES[min(int(3 * share), 2)]


def join_users(users: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Joins recordings of users.

    Args:
      users: PCM, int16[n] or float32[n] at 16 kHz; all but the last have whole micro-turns.
      gap: Micro-turns of silence between two recordings.

    Returns:
      PCM of the same dtype, [m].

    Raises:
      ValueError: A recording before the last one ends within a micro-turn.
    """
    broken = [index for index, user in enumerate(users[:-1]) if len(user) % TURN]
    if broken:
        raise ValueError(
            f"users: got {len(users[broken[0]])} samples in recording {broken[0]}, wanted a "
            f"multiple of {TURN}; append silence to it"
        )
    silence = np.zeros(gap * TURN, users[0].dtype)
    behind = [silence] * (len(users) - 1) + [silence[:0]]
    return np.concatenate([part for pair in zip(users, behind, strict=True) for part in pair])


def cut_replies(replies: Rollout, turns: Sequence[int]) -> list[Rollout]:
    """Cuts the replies to a long session into those to its parts.

    The replies to each part are on the clock of the part, like its events.

    Args:
      replies: Replies to the long session.
      turns: Length of each part in micro-turns, with the gap after it.

    Raises:
      ValueError: The lengths do not add up to that of the long session.
    """
    if sum(turns) != len(replies.text):
        raise ValueError(
            f"turns: got {list(turns)}, {sum(turns)} together, wanted {len(replies.text)}; pass "
            "the length of each part"
        )
    edges = [0, *itertools.accumulate(turns)]
    return [
        Rollout(
            replies.audio[first * TURN : end * TURN],
            replies.text[first:end],
            replies.user_transcript[first:end],
            replies.step_s[first:end],
        )
        for first, end in itertools.pairwise(edges)
    ]


def join_metas(metas: Sequence[Mapping[str, Any]], gap: int) -> Meta:
    """Joins the annotations of sessions with delegations.

    Args:
      metas: Metas of the parts: "turns", "voice", "events", "delegations", "prices", "time".
      gap: Micro-turns of silence between two parts.

    Returns:
      The meta of the long session. It has "voices" instead of "voice", and "part_turns", the length
      of each part with the gap after it. Events and notes are on the clock of the long session, and
      all delegations have different numbers. Each note has its "part", and "part_end_s", the time
      at which the part and its gap end.

    Raises:
      ValueError: The parts differ in "prices" or "time", which the tools return.
    """
    first = metas[0]
    for index, meta in enumerate(metas):
        if any(meta[name] != first[name] for name in ("prices", "time")):
            raise ValueError(
                f"metas: got other prices or another time in part {index} than in part 0, wanted "
                "the same in all parts; make the others with make_delegation_session(like=...)"
            )
    part_turns = [meta["turns"] + gap for meta in metas]
    part_turns[-1] -= gap
    events, notes, start, number = [], [], 0, 0
    for part, (meta, turns) in enumerate(zip(metas, part_turns, strict=True)):
        events += [shift_event(event, start, number) for event in meta["events"]]
        where = {"part": part, "part_end_s": round(TURN_S * (start + meta["turns"] + gap), 5)}
        notes += [shift_note(note, start, number) | where for note in meta["delegations"]]
        start += turns
        number += len(meta["delegations"])
    return {
        "turns": start,
        "part_turns": part_turns,
        "voices": [meta["voice"] for meta in metas],
        "events": events,
        "delegations": notes,
        "prices": first["prices"],
        "time": first["time"],
    }


def _shift(
    entry: Mapping[str, Any], seconds: Sequence[str], steps: Sequence[str], turns: int
) -> dict[str, Any]:
    """The entry with the named times `turns` micro-turns later; negative times stay."""
    shifted = dict(entry)
    for name in seconds:
        if shifted.get(name, -1.0) >= 0:
            shifted[name] = round(shifted[name] + TURN_S * turns, 5)
    for name in steps:
        if shifted.get(name, -1) >= 0:
            shifted[name] += turns
    return shifted


def shift_event(event: Mapping[str, Any], turns: int, number: int = 0) -> dict[str, Any]:
    """An event of a session's meta on the clock of the long session.

    Args:
      event: The event on the clock of its part.
      turns: Micro-turns before its part.
      number: Number of delegations before its part.
    """
    shifted = _shift(event, EVENT_SECONDS, EVENT_TURNS, turns)
    by = TURN_S * turns
    shifted["pauses"] = [
        [round(start + by, 5), round(end + by, 5)] for start, end in event.get("pauses", ())
    ]
    if event.get("delegation", 0):
        shifted["delegation"] = event["delegation"] + number
    return shifted


def shift_note(note: Mapping[str, Any], turns: int, number: int = 0) -> dict[str, Any]:
    """A note of a delegation on the clock of the long session, see `shift_event`."""
    shifted = _shift(note, NOTE_SECONDS, NOTE_TURNS, turns)
    shifted["number"] = note["number"] + number
    shifted["updates"] = [_shift(update, ("end_s",), (), turns) for update in note["updates"]]
    return shifted


def notes_at(meta: Mapping[str, Any], turn: int) -> list[Mapping[str, Any]]:
    """The notes of the part in which a micro-turn lies; all notes of a session without parts."""
    if "part_turns" not in meta:
        return list(meta["delegations"])
    ends = np.cumsum(meta["part_turns"])[:-1]
    part = int(np.searchsorted(ends, turn, side="right"))
    return [note for note in meta["delegations"] if note["part"] == part]
