"""Engines under load, for hours and killed: whether sessions stay equal, in time and in memory."""

import collections
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.background.agent import BackgroundAgent
from interaction.engine import session_events
from interaction.engine.engine import Engine
from interaction.engine.replay import replay
from interaction.engine.rows import BatchModel, RowInput, Rows
from interaction.engine.session import Session
from interaction.engine.session_record import SessionReader
from interaction.evaluation.events import TURN_S
from interaction.evaluation.rollout import TURN, to_float

Users = Sequence[np.ndarray]  # int16[n] or float32[n] at 16 kHz


class _Guest(NamedTuple):
    """A session of the load, its user and its record."""

    session: Session
    told: collections.Counter[str]  # its events by kind
    chunks: Iterator[np.ndarray]  # float32[TURN], PCM of each micro-turn
    record: pathlib.Path


def chunks_of(user: np.ndarray) -> np.ndarray:
    """Cuts a user's PCM, int16[n] or float32[n], into float32[turns, 3200] in [-1, 1]."""
    turns = -(-len(user) // TURN)
    pcm = np.zeros(turns * TURN, np.float32)
    pcm[: len(user)] = to_float(user)
    return pcm.reshape(turns, TURN)


def run_load(
    model: BatchModel,
    users: Users,
    rows: int,
    seconds: float,
    make_agent: Callable[[int], BackgroundAgent | None],
    checked: int = 8,
    seed: int = 0,
    on_second: Callable[[Engine], object] | None = None,
) -> dict[str, Any]:
    """Fills an engine in real time; every second a session leaves and another one joins.

    Args:
      model: The model.
      users: Users; each is heard again and again by some sessions.
      rows: Sessions at once.
      seconds: Length, s.
      make_agent: Makes the agent of a session from the session's number.
      checked: Sessions whose record is run again with all other rows inactive, and in a batch of 1.
      seed: Seed of the sessions' sampling.
      on_second: Called every second.

    Returns:
      A dict for JSON: "sessions" at once; "opened"; "turns" of the engine; "deadline_misses", turns
      whose replies were late; "lost", chunks of the users; "delegations" that were asked, and
      "answered", of which the model was given the answer; "step_p50_ms", "step_p99_ms";
      "equal_alone", checked sessions that are bit-equal alone in the batch; "tokens_equal_of_one",
      those with equal tokens in a batch of 1; "checked".
    """
    with tempfile.TemporaryDirectory() as place, Engine(model, rows) as engine:
        folder, guests, left, count = pathlib.Path(place), [], [], 0
        steps: list[float] = []
        began = time.monotonic()
        for tick in range(int(seconds / TURN_S)):
            turn = began + tick * TURN_S
            if tick % round(1 / TURN_S) == 0 or len(guests) < rows:
                if len(guests) == rows:
                    oldest = guests.pop(0)
                    engine.close(oldest.session)
                    left.append(oldest)
                record = folder / f"{count:06d}.session"
                session = engine.open(make_agent(count), seed + count, record)
                told = _count_events(session)
                guests.append(_Guest(session, told, _endless([users[count % len(users)]]), record))
                count += 1
                if on_second is not None:
                    on_second(engine)
            for guest in guests:
                guest.session.hear(next(guest.chunks))
                steps.append(guest.session.stats.step_s)
            time.sleep(max(0.0, turn + TURN_S - time.monotonic()))
        ticks, missed = engine.ticks, engine.missed
        told = sum((guest.told for guest in (*left, *guests)), collections.Counter())
        lost = sum(guest.session.stats.lost for guest in (*left, *guests))
        for guest in guests:
            engine.close(guest.session)
        left = [guest for guest in (*left, *guests) if guest.session.stats.turns > 0]
        places = np.linspace(0, len(left) - 1, min(checked, len(left)), dtype=int)
        chosen = [left[place] for place in places]
        alone, one = Rows(model, rows), Rows(model, 1)
        equal = [_again(alone, guest.record, bits=True) for guest in chosen]
        tokens = [_again(one, guest.record, bits=False) for guest in chosen]
    step_ms = 1_000 * np.asarray(steps)
    return {
        "sessions": rows,
        "opened": count,
        "turns": ticks,
        "deadline_misses": missed,
        "lost": lost,
        "delegations": told[session_events.ASKED],
        "answered": told[session_events.DONE] - told[session_events.FAILED],
        "step_p50_ms": float(np.percentile(step_ms, 50)),
        "step_p99_ms": float(np.percentile(step_ms, 99)),
        "equal_alone": sum(equal),
        "tokens_equal_of_one": sum(tokens),
        "checked": len(chosen),
    }


def _count_events(session: Session) -> collections.Counter[str]:
    told: collections.Counter[str] = collections.Counter()
    session.subscribe(lambda event: told.update([event.kind]))
    return told


def _again(rows: Rows, path: pathlib.Path, bits: bool) -> bool:
    """Whether the sessions of a record run alone in a batch gives the same bits, or tokens."""
    with SessionReader(path) as record:
        row, same, turns = rows.allocate(record.header.seed), True, 0
        for entry in record:
            reply = rows.step({row: RowInput(entry.audio, entry.arrived, entry.frame)})[row]
            same &= int(reply.text) == entry.text
            turns += 1
            if bits:
                same &= reply.audio.tobytes() == entry.speech.tobytes()
                same &= reply.user_transcript.tobytes() == entry.user_transcript.tobytes()
        same &= turns > 0 and not record.problem
    rows.release(row)
    return same


def run_hours(
    model: BatchModel,
    users: Users,
    hours: float,
    folder: pathlib.Path,
    on_turn: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """One session as fast as it goes, recorded and replayed.

    Args:
      model: The model.
      users: Users that are heard one after another, again and again.
      hours: Simulated hours.
      folder: Folder for the record, of about 120 MB an hour.
      on_turn: Called with the number of each micro-turn.

    Returns:
      A dict for JSON: "turns"; "tail_over_head", CPU time of a micro-turn in the last tenth
      relative to the second tenth; "memory_growth_mb" and "replay_growth_mb", memory at the
      end minus that after the first tenth, and that before the replay; "replay_equal"; "complete".
    """
    turns, path = int(hours * 3_600 / TURN_S), folder / "hours.session"
    engine = Engine(model)
    session = engine.open(record=path)
    times, at_tenth = np.zeros(turns), 0.0
    for turn, pcm in zip(range(turns), _endless(users), strict=False):
        session.give(pcm)
        began = time.process_time()
        engine.tick()
        times[turn] = time.process_time() - began
        if turn == turns // 10:
            at_tenth = memory_mb()
        if on_turn is not None:
            on_turn(turn)
    complete = engine.close(session)
    grown = memory_mb() - at_tenth
    tenth = turns // 10
    before = memory_mb()
    again = replay(path, model)
    return {
        "turns": turns,
        "tail_over_head": float(np.median(times[-tenth:]) / np.median(times[tenth : 2 * tenth])),
        "memory_growth_mb": grown,
        "replay_growth_mb": memory_mb() - before,
        "replay_equal": again.equal,
        "complete": complete and again.complete,
    }


def _endless(users: Users) -> Iterator[np.ndarray]:
    while True:
        for user in users:
            yield from chunks_of(user)


def memory_mb(process: int | str = "self") -> float:
    """The memory that a process has now, MB; without a number that of this one."""
    pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
