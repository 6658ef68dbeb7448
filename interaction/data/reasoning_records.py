"""Records for the training of the background model, made from sessions with delegations.

Each record has one fork with reasoning tokens. Whole records keep the length of the session. Short
records keep a few micro-turns, because what is to be learnt about calls stands in the fork, and
training on it costs less after a short conversation.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from interaction.data import reasoning_tokens, records, timing
from interaction.data.delegation_sessions import ERROR_SHARE, ERRORS, TEXT_SLOTS, imagined_reasoning
from interaction.data.domain import tool_requests
from interaction.data.stored_session import StoredSession
from interaction.types import Special

SHORT_TURNS = 20  # micro-turns of a short record
CORRECTED_SHARE = 0.3  # share of the imagined requests that are corrected, where they can be
SIZES = {  # length of one micro-turn along the first axis of each field
    "user": timing.TURN,
    "model": timing.TURN,
    "text": 1,
    "user_transcript": 1,
}
_SHARD = 100  # records of a file


def has_reasoning(record: StoredSession) -> bool:
    """Whether a record has a fork with reasoning tokens."""
    return bool(np.any(record["reasoning"] != Special.PAD))


def preceded(record: StoredSession, earlier: StoredSession) -> StoredSession:
    """A record whose fork comes at its end, preceded by the end of another session.

    Most requests come early in a session, and micro-turns after the fork are not read in training.
    They are dropped, and as many micro-turns of `earlier` are put at the front.

    Args:
      record: n micro-turns, with a fork after k of them.
      earlier: n micro-turns, of which the last n - k are taken.

    Returns:
      A record of n micro-turns with the same fork, after all of them. If more text arrives than a
      record has room for, the earliest is dropped.

    Raises:
      ValueError: The two have different lengths.
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
    # The events of the old meta have the wrong times now.
    made["meta"] = json.dumps({"preceding_turns": turns - before})
    return made


def _arrivals(record: StoredSession) -> list[tuple[int, int]]:
    pairs = zip(record["arrived_slot"].tolist(), record["arrived"].tolist(), strict=True)
    return sorted((slot, token) for slot, token in pairs if token != Special.PAD)


def whole_records(path: Path, seed: int, preceded_share: float) -> Iterator[StoredSession]:
    """The records with a fork, in the order of the sessions at `path`.

    Args:
      path: Sessions.
      seed: With the number of a session, decides what precedes it.
      preceded_share: Share of the records that are preceded by any other session of `path`.

    Raises:
      ValueError: There are no sessions.
    """
    source = records.source(path)
    for index in range(len(source)):
        record = source.decode(index)
        if has_reasoning(record):
            rng = np.random.default_rng((seed, index))
            if rng.random() < preceded_share:
                record = preceded(record, source.decode(int(rng.integers(len(source)))))
            yield record


def short_record(record: StoredSession, rng: np.random.Generator) -> StoredSession:
    """The last micro-turns before a record's fork, with an imagined request in the fork.

    Args:
      record: With a fork.
      rng: Source of the imagined request.

    Returns:
      A record of SHORT_TURNS micro-turns.
    """
    before = int(record["prefilled"])
    start = max(before - SHORT_TURNS, 0)
    made = dict(record)
    for name, size in SIZES.items():
        made[name] = record[name][start * size : (start + SHORT_TURNS) * size]
    first, end = start * TEXT_SLOTS, (start + SHORT_TURNS) * TEXT_SLOTS
    arrived = [(at - first, token) for at, token in _arrivals(record) if first <= at < end]
    made |= reasoning_tokens.arrival_arrays(arrived)
    request = tool_requests.draw_tool_request(rng)
    slots = tool_requests.draw_slots(request, rng, held_out=False)
    error = ERRORS[int(rng.integers(len(ERRORS)))] if rng.random() < ERROR_SHARE else ""
    time = f"{rng.integers(1, 13)}:{rng.integers(60):02d}"
    corrected = bool(request.fix) and rng.random() < CORRECTED_SHARE
    reasoning = imagined_reasoning(request, slots, corrected, error, time, rng)
    made |= reasoning_tokens.reasoning_arrays(before - start, reasoning)
    made["meta"] = json.dumps({"first_turn": start})  # the events of the old meta have wrong times
    return made


def short_records(path: Path, seed: int, copies: int) -> Iterator[StoredSession]:
    """Short records of each session with a fork at `path`.

    Args:
      path: Sessions.
      seed: With the numbers of the session and of the copy, decides the imagined request.
      copies: Short records of one session.

    Raises:
      ValueError: There are no sessions.
    """
    for index, record in enumerate(whole_records(path, seed, 0.0)):
        for copy in range(copies):
            yield short_record(record, np.random.default_rng((seed, index, copy)))


def write_records(made: Iterator[StoredSession], out: Path) -> int:
    """Writes records into a new folder, which appears when it is complete.

    Returns:
      The number of records.

    Raises:
      ValueError: There are no records, or the folder exists.
    """
    if out.exists():
        raise ValueError(f"out: got {out}, wanted a new folder; remove it or name another one")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)

    def shard(number: int) -> Path:
        return partial / f"reasoning-{number:05d}.arrayrecord"

    counts = [records.write(shard(0), itertools.islice(made, _SHARD))]
    while counts[-1] == _SHARD:
        counts.append(records.write(shard(len(counts)), itertools.islice(made, _SHARD)))
    if not sum(counts):
        raise ValueError(
            "sessions: got none with a delegation, wanted at least one; make them with "
            "--delegations above 0"
        )
    if not counts[-1]:
        shard(len(counts) - 1).unlink()
    partial.rename(out)
    return sum(counts)
