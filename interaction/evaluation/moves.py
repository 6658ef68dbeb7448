"""Sessions that are saved, restored, forked and rewound at random moments, and go on to the bit."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interaction.engine.engine import Engine
from interaction.engine.rows import BatchModel
from interaction.engine.session import Session
from interaction.evaluation.endurance import chunks_of

ROWS, OTHER_ROWS = 4, 7  # sessions of the batches between which sessions move
LONGEST, AGAIN = 40, 10  # most micro-turns before a move; micro-turns that are compared
ROW, PROCESS, SIZE, FORK, REWIND = "row", "process", "size", "fork", "rewind"
KINDS = (ROW, PROCESS, SIZE, FORK, REWIND)
_EXPECTED, _FOUND, _USERS = "expected.json", "found.json", "users.npz"
Heard = list[list[Any]]  # [text token, hex of a digest of the rest] of each micro-turn


def _take(
    engine: Engine, sessions: Sequence[Session], chunks: np.ndarray, start: int, count: int
) -> list[Heard]:
    """Micro-turns of sessions that all hear chunks[start : start + count], around its end."""
    heard: list[Heard] = [[] for _ in sessions]
    for turn in range(start, start + count):
        for session in sessions:
            session.give(chunks[turn % len(chunks)])
        engine.tick()
        for session, own in zip(sessions, heard, strict=True):
            reply = session.reply
            if reply is None or session.closed:
                raise RuntimeError(f"a session ended: {session.closed}")
            rest = reply.audio.tobytes() + reply.user_transcript.tobytes()
            own.append([int(reply.text), hashlib.sha256(rest).hexdigest()[:16]])
    return heard


def run_moves(
    model: BatchModel,
    users: Sequence[np.ndarray],
    plain: Sequence[np.ndarray],
    count: int,
    seed: int,
    folder: pathlib.Path,
    elsewhere: Callable[[pathlib.Path], None],
    on_move: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Moves sessions in the middle of a talk, and compares how they go on with how they would have.

    Args:
      model: The model.
      users: PCM of users, int16[n] or float32[n] at 16 kHz.
      plain: The same of users who ask for no tool, for rewinds: these take back the model, not its
        delegations, whose words would come earlier the second time.
      count: Number of moves, a fifth of each kind.
      seed: Decides moments and users.
      folder: Folder for the files of sessions.
      elsewhere: Calls `go_on` with `folder` in another process.
      on_move: Called after each move.

    Returns:
      A dict for JSON: "moves" and "continued" (bit-equal) at the same batch size; "moves_of_size"
      and "tokens_equal" into a batch of another size; "by_kind".
    """
    rng, engine = np.random.default_rng(seed), Engine(model, ROWS, rewind=AGAIN)
    talks = [chunks_of(user) for user in (*users, *plain)]
    equal: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    expected: dict[str, Any] = {}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        user = int(rng.integers(len(users)))
        if kind == REWIND:
            user = len(users) + int(rng.integers(len(plain)))
        chunks, turns = talks[user], int(rng.integers(1, LONGEST))
        others = [engine.open(seed=one) for one in range(int(rng.integers(ROWS - 1)))]
        session = engine.open(seed=number)
        _take(engine, [session, *others], chunks, 0, turns)
        for one in others:
            engine.close(one)
        if kind in (FORK, REWIND):
            equal[kind].append(_beside(engine, session, kind, chunks, turns))
        else:
            path = folder / f"{number:04d}.{kind}"
            engine.save(session, path)
            [wanted] = _take(engine, [session], chunks, turns, AGAIN)
            expected[path.name] = {"user": user, "turns": turns, "heard": wanted}
            if kind == ROW:
                other = engine.open(seed=0)  # so that the row is another one
                engine.close(session)
                taken = engine.open(seed=1)
                moved = engine.restore(path)
                equal[kind].append(_take(engine, [moved], chunks, turns, AGAIN) == [wanted])
                for one in (other, taken, moved):
                    engine.close(one)
        if not session.closed:
            engine.close(session)
        if on_move is not None:
            on_move()
    (folder / _EXPECTED).write_text(json.dumps(expected))
    np.savez(folder / _USERS, *users)
    elsewhere(folder)
    found = json.loads((folder / _FOUND).read_text())
    for name, wanted in expected.items():
        if name.endswith(PROCESS):
            equal[PROCESS].append(found[name] == wanted["heard"])
        if name.endswith(SIZE):
            tokens = [[token for token, _ in heard] for heard in (found[name], wanted["heard"])]
            equal[SIZE].append(tokens[0] == tokens[1])
    kept = [one for kind in KINDS if kind != SIZE for one in equal[kind]]
    return {
        "moves": len(kept),
        "continued": sum(kept),
        "moves_of_size": len(equal[SIZE]),
        "tokens_equal": sum(equal[SIZE]),
        "by_kind": {kind: [sum(equal[kind]), len(equal[kind])] for kind in KINDS},
    }


def _beside(engine: Engine, session: Session, kind: str, chunks: np.ndarray, turns: int) -> bool:
    """Whether a fork, or a session after a rewind, repeats the micro-turns of the session."""
    if kind == FORK:
        copy = engine.fork(session)
        first, second = _take(engine, [session, copy], chunks, turns, AGAIN)
        engine.close(copy)
    else:
        first = _take(engine, [session], chunks, turns, AGAIN)
        engine.rewind(session, AGAIN)
        second = _take(engine, [session], chunks, turns, AGAIN)
    return first == second


def go_on(model: BatchModel, folder: pathlib.Path) -> None:
    """Goes on with the sessions that `run_moves` saved in a folder, in a process of its own."""
    talks = [chunks_of(user) for user in np.load(folder / _USERS).values()]
    found = {}
    for kind, rows in ((PROCESS, ROWS), (SIZE, OTHER_ROWS)):
        engine = Engine(model, rows)
        for name, one in json.loads((folder / _EXPECTED).read_text()).items():
            if name.endswith(kind):
                session = engine.restore(folder / name)
                chunks, turns = talks[one["user"]], one["turns"]
                [found[name]] = _take(engine, [session], chunks, turns, AGAIN)
                engine.close(session)
    (folder / _FOUND).write_text(json.dumps(found))
