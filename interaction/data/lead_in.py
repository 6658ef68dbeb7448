"""Records for the background model to learn from: branches after much talk, or after little."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from interaction.data import branches, records, timing
from interaction.data.domain import errands
from interaction.data.errand_sessions import ERROR_SHARE, ERRORS, TEXT_SLOTS, imagined_branch
from interaction.data.sessions import Record
from interaction.types import Special

REHEARSED = 20  # micro-turns of a rehearsal
CORRECTED_SHARE = 0.3  # of rehearsals, where the errand can be corrected
SIZES = {"user": timing.TURN, "model": timing.TURN, "text": 1, "heard": 1}  # of a micro-turn
_SHARD = 100  # records of a file


def has_branch(record: Record) -> bool:
    """Whether there is something in it for the background model to learn."""
    return bool(np.any(record["thought"] != Special.PAD))


def led_in(record: Record, earlier: Record) -> Record:
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
    turns, before = len(record["text"]), int(record["followed"])
    if len(earlier["text"]) != turns:
        raise ValueError(
            f"earlier: got {len(earlier['text'])} micro-turns, wanted {turns} as in the record; "
            "take both from one set"
        )
    made = {**record, "followed": np.asarray(turns, np.int32)}
    for name, size in SIZES.items():
        parts = earlier[name][before * size :], record[name][: before * size]
        made[name] = np.concatenate(parts)
    first, later = before * TEXT_SLOTS, (turns - before) * TEXT_SLOTS
    arrived = [(slot - first, token) for slot, token in _arrivals(earlier) if slot >= first]
    arrived += [(slot + later, token) for slot, token in _arrivals(record) if slot < first]
    made |= branches.arrival_arrays(arrived[-branches.ARRIVALS :])
    made["meta"] = json.dumps({"led_in": turns - before})  # times of before are wrong now
    return made


def _arrivals(record: Record) -> list[tuple[int, int]]:
    pairs = zip(record["arrived_slot"].tolist(), record["arrived"].tolist(), strict=True)
    return sorted((slot, token) for slot, token in pairs if token != Special.PAD)


def branches_of(path: Path, seed: int, share: float) -> Iterator[Record]:
    """Records with branches, in the order of the sessions at `path`.

    A share of them is led in, each by any of the sessions; the seed and its number decide.

    Raises:
      ValueError: There are no sessions.
    """
    source = grain.sources.ArrayRecordDataSource([str(file) for file in records.files(path)])
    for index in range(len(source)):
        record = records.decode(source[index])
        if has_branch(record):
            rng = np.random.default_rng((seed, index))
            if rng.random() < share:
                record = led_in(record, records.decode(source[int(rng.integers(len(source)))]))
            yield record


def rehearsal(record: Record, rng: np.random.Generator) -> Record:
    """The last micro-turns before a record's branch, and an imagined request in its place.

    What there is to learn about calls lies in the branch, which costs the less the shorter the
    talk is.

    Args:
      record: With a branch.
      rng: Draws.

    Returns:
      A record of REHEARSED micro-turns.
    """
    before = int(record["followed"])
    start = max(before - REHEARSED, 0)
    made = dict(record)
    for name, size in SIZES.items():
        made[name] = record[name][start * size : (start + REHEARSED) * size]
    first, end = start * TEXT_SLOTS, (start + REHEARSED) * TEXT_SLOTS
    arrived = [(at - first, token) for at, token in _arrivals(record) if first <= at < end]
    made |= branches.arrival_arrays(arrived)
    errand = errands.draw_errand(rng)
    slots = errands.draw_slots(errand, rng, held_out=False)
    error = ERRORS[int(rng.integers(len(ERRORS)))] if rng.random() < ERROR_SHARE else ""
    time = f"{rng.integers(1, 13)}:{rng.integers(60):02d}"
    corrected = bool(errand.fix) and rng.random() < CORRECTED_SHARE
    branch = imagined_branch(errand, slots, corrected, error, time, rng)
    made |= branches.branch_arrays(before - start, branch)
    made["meta"] = json.dumps({"rehearsed": start})  # times of before are wrong now
    return made


def rehearsals_of(path: Path, seed: int, copies: int) -> Iterator[Record]:
    """Rehearsals of each session with a branch at `path`; the seed and their numbers decide.

    Raises:
      ValueError: There are no sessions.
    """
    for index, record in enumerate(branches_of(path, seed, 0.0)):
        for copy in range(copies):
            yield rehearsal(record, np.random.default_rng((seed, index, copy)))


def write_branches(made: Iterator[Record], out: Path) -> int:
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
