"""Records for the background model to learn from: branches after much talk, or after little."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from interaction.data import reasoning_tokens, records, timing
from interaction.data.delegation_sessions import ERROR_SHARE, ERRORS, TEXT_SLOTS, imagined_reasoning
from interaction.data.domain import tool_requests
from interaction.data.sessions import StoredSession
from interaction.types import Special

SHORT_TURNS = 20  # micro-turns of a rehearsal
CORRECTED_SHARE = 0.3  # of rehearsals, where the errand can be corrected
SIZES = {
    "user": timing.TURN,
    "model": timing.TURN,
    "text": 1,
    "user_transcript": 1,
}  # of a micro-turn
_SHARD = 100  # records of a file


def has_reasoning(record: StoredSession) -> bool:
    """Whether there is something in it for the background model to learn."""
    return bool(np.any(record["reasoning"] != Special.PAD))


def preceded(record: StoredSession, earlier: StoredSession) -> StoredSession:
    """A record whose branch comes at its end, after another conversation.

    Most requests come early in a session, and what comes after a branch is not read: its
    micro-turns make room for those of `earlier` that come as late.

    Args:
      record: With a branch after k of its n micro-turns.
      earlier: As long; its last n - k micro-turns come first.

    Returns:
      A record of n micro-turns with the same branch, after all of them. Where more text arrives
      than a record has room for, the earliest is left out.

    Raises:
      ValueError: The two are not as long.
    """
    turns, before = len(record["text"]), int(record["prefilled"])
    if len(earlier["text"]) != turns:
        raise ValueError(
            f"earlier: got {len(earlier['text'])} micro-turns, wanted {turns} as in the record; "
            "take both from one set"
        )
    made = {**record, "prefilled": np.asarray(turns, np.int32)}
    for name, size in SIZES.items():
        parts = earlier[name][before * size :], record[name][: before * size]
        made[name] = np.concatenate(parts)
    first, later = before * TEXT_SLOTS, (turns - before) * TEXT_SLOTS
    arrived = [(slot - first, token) for slot, token in _arrivals(earlier) if slot >= first]
    arrived += [(slot + later, token) for slot, token in _arrivals(record) if slot < first]
    made |= reasoning_tokens.arrival_arrays(arrived[-reasoning_tokens.ARRIVALS :])
    made["meta"] = json.dumps({"preceded": turns - before})  # times of before are wrong now
    return made


def _arrivals(record: StoredSession) -> list[tuple[int, int]]:
    pairs = zip(record["arrived_slot"].tolist(), record["arrived"].tolist(), strict=True)
    return sorted((slot, token) for slot, token in pairs if token != Special.PAD)


def reasoning_records_of(path: Path, seed: int, share: float) -> Iterator[StoredSession]:
    """Records with branches, in the order of the sessions at `path`.

    A share of them is led in, each by any of the sessions; the seed and its number decide.

    Raises:
      ValueError: There are no sessions.
    """
    source = records.source(path)
    for index in range(len(source)):
        record = records.decode(source[index])
        if has_reasoning(record):
            rng = np.random.default_rng((seed, index))
            if rng.random() < share:
                record = preceded(record, records.decode(source[int(rng.integers(len(source)))]))
            yield record


def short_record(record: StoredSession, rng: np.random.Generator) -> StoredSession:
    """The last micro-turns before a record's branch, and an imagined request in its place.

    What there is to learn about calls lies in the branch, which costs the less the shorter the
    talk is.

    Args:
      record: With a branch.
      rng: Draws.

    Returns:
      A record of REHEARSED micro-turns.
    """
    before = int(record["prefilled"])
    start = max(before - SHORT_TURNS, 0)
    made = dict(record)
    for name, size in SIZES.items():
        made[name] = record[name][start * size : (start + SHORT_TURNS) * size]
    first, end = start * TEXT_SLOTS, (start + SHORT_TURNS) * TEXT_SLOTS
    arrived = [(at - first, token) for at, token in _arrivals(record) if first <= at < end]
    made |= reasoning_tokens.arrival_arrays(arrived)
    tool_request = tool_requests.draw_tool_request(rng)
    slots = tool_requests.draw_slots(tool_request, rng, held_out=False)
    error = ERRORS[int(rng.integers(len(ERRORS)))] if rng.random() < ERROR_SHARE else ""
    time = f"{rng.integers(1, 13)}:{rng.integers(60):02d}"
    corrected = bool(tool_request.fix) and rng.random() < CORRECTED_SHARE
    reasoning = imagined_reasoning(tool_request, slots, corrected, error, time, rng)
    made |= reasoning_tokens.reasoning_arrays(before - start, reasoning)
    made["meta"] = json.dumps({"short_from": start})  # times of before are wrong now
    return made


def short_records_of(path: Path, seed: int, copies: int) -> Iterator[StoredSession]:
    """Rehearsals of each session with a branch at `path`; the seed and their numbers decide.

    Raises:
      ValueError: There are no sessions.
    """
    for index, record in enumerate(reasoning_records_of(path, seed, 0.0)):
        for copy in range(copies):
            yield short_record(record, np.random.default_rng((seed, index, copy)))


def write_records(made: Iterator[StoredSession], out: Path) -> int:
    """Writes records into a new folder, which appears when it is complete.

    Returns:
      The number of records.

    Raises:
      ValueError: There are none, or the folder exists.
    """
    if out.exists():
        raise ValueError(f"out: got {out}, wanted a new folder; remove it or name another")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)

    def shard(number: int) -> Path:
        return partial / f"branches-{number:05d}.arrayrecord"

    counts = [records.write(shard(0), itertools.islice(made, _SHARD))]
    while counts[-1] == _SHARD:
        counts.append(records.write(shard(len(counts)), itertools.islice(made, _SHARD)))
    if not sum(counts):
        raise ValueError("sessions: got none with a branch; make them with --errands above 0")
    if not counts[-1]:
        shard(len(counts) - 1).unlink()
    partial.rename(out)
    return sum(counts)
