r"""What must hold for hours, under load, over bad networks and after kills; short forms run in CI.

python -m experiments.soak --what=sessions --rows=24 --minutes=10 --json=out/sessions.json
python -m experiments.soak --what=network --hours=3 --json=out/network.json
python -m experiments.soak --what=hours --hours=10 --json=out/hours.json
python -m experiments.soak --what=kill --count=10 --json=out/kill.json
python -m experiments.soak --what=moves --count=100 --json=out/moves.json
python -m experiments.soak --what=tools --count=200 --json=out/tools.json
python -m experiments.soak --what=corrections --count=20 --json=out/corrections.json
python -m experiments.soak --what=files --count=1000 --json=out/files.json
python -m experiments.soak --what=chunks --count=10000 --json=out/chunks.json

sessions: an engine full of conversations in real time; every second one leaves and another joins,
half of them with a background agent that is asked every 20 s. network: the playout buffer over
simulated networks, and the words of the transcript that survive them. hours: one session as fast as
it goes, recorded and replayed. kill: an engine that saves its sessions every 2 s is killed at
random moments. moves: sessions that are saved, forked and rewound, and go on elsewhere. tools: what
the pair says about tools that fail. corrections: users with held-out voices correct the newest of
two requests, in real time. files: crafted session files. chunks: input that is no PCM, no frame, no
text and no number.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.figures_file import write_figures
from interaction.background.batched_reasoner import BatchedReasoner
from interaction.background.demo_tools import demo_tools
from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.background.toolbox import Toolbox
from interaction.data.delegation_sessions import make_delegation_session
from interaction.data.sessions import make_session
from interaction.data.stored_session import StoredSession
from interaction.engine.engine import Engine
from interaction.engine.snapshots import SUFFIX, Snapshots
from interaction.evaluation import (
    corrections,
    crafted_files,
    endurance,
    failing_tools,
    fuzzed_chunks,
    heard_words,
    moves,
    network,
)
from interaction.evaluation.events import TURN_S

_KINDS = (
    *("sessions", "network", "hours", "kill", "moves"),
    *("tools", "corrections", "files", "chunks"),
)
_WHAT = flags.DEFINE_enum("what", "sessions", _KINDS, "What to do.")
_JSON = flags.DEFINE_string("json", None, "File for the figures.")
_MODEL = flags.DEFINE_string("model", "demo", "Name or folder of a released model.")
_ROWS = flags.DEFINE_integer("rows", 24, "Sessions at once.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 10, "Minutes of --what=sessions, real time.")
_HOURS = flags.DEFINE_float("hours", 10, "Simulated hours of --what=hours and network.")
_COUNT = flags.DEFINE_integer(
    "count", 10, "Checked sessions, kills, moves, requests, voices, files or chunks.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all that is drawn.")
_CHILD = flags.DEFINE_string("child", None, "Internal: folder of another process.")
_WORDS_USERS, _WORDS_TURNS = 48, 250  # users of the transcript, each of 50 s
_USERS, _USER_TURNS = 8, 100  # users of a load, each of 20 s with one or more requests
_KILL_ROWS, _KILL_S = 4, (4.0, 9.0)  # sessions; s after which an engine is killed


def make_users(count: int, seed: int) -> list[dict[str, Any]]:
    """Held-out users who ask for tools: "user" int16[n] at 16 kHz and "meta", a dict."""
    made = [
        make_delegation_session((seed, index), "heldout", _USER_TURNS)
        for index in tqdm(range(count), desc="users", unit="user")
    ]
    return [{"user": one["user"], "meta": json.loads(one["meta"])} for one in made]


def make_plain_users(count: int, turns: int, seed: int) -> list[StoredSession]:
    """Sessions of held-out users whom the live model answers alone."""
    return [
        make_session((seed, index), "heldout", "plain", turns)
        for index in tqdm(range(count), desc="users", unit="user")
    ]


def run_sessions() -> dict[str, Any]:
    """Runs --what=sessions."""
    users = make_users(_USERS, _SEED.value)
    model = interaction.load(_MODEL.value)
    reasoner = BatchedReasoner(load_reasoner(), 2 * _ROWS.value)
    reasoner.warm_up()

    def agent(number: int) -> ReasonerAgent | None:
        return ReasonerAgent(reasoner, Toolbox(demo_tools([]))) if number % 2 == 0 else None

    seconds = 60 * _MINUTES.value
    with tqdm(total=round(seconds), desc="time", unit="s") as progress:

        def show(engine: Engine) -> None:
            progress.set_postfix(sessions=len(engine.sessions), missed=engine.missed)
            progress.update(1)

        pcm = [one["user"] for one in users]
        return endurance.run_load(
            model, pcm, _ROWS.value, seconds, agent, _COUNT.value, _SEED.value, show
        )


def run_network() -> dict[str, Any]:
    """Runs --what=network."""
    records = make_plain_users(_WORDS_USERS, _WORDS_TURNS, _SEED.value)
    with tqdm(total=len(heard_words.NETWORKS) * _WORDS_TURNS, unit="micro-turn") as progress:
        words = heard_words.count_words(
            interaction.load(_MODEL.value), records, _SEED.value, lambda _: progress.update()
        )
    rows = {}
    for name in tqdm(network.IMPAIRMENTS, unit="network"):
        trace = network.make_trace(name, 3_600 * _HOURS.value, _SEED.value)
        rows[name] = network.simulate(trace)._asdict()
    return {
        "hours": _HOURS.value,
        "heard_again_s_max": max(row["heard_again_s_max"] for row in rows.values()),
        "behind_s_max": max(row["behind_s_max"] for row in rows.values()),
        **words,
        "networks": rows,
    }


def run_hours() -> dict[str, Any]:
    """Runs --what=hours."""
    users = make_users(_USERS, _SEED.value)
    model = interaction.load(_MODEL.value)
    with tempfile.TemporaryDirectory() as folder, tqdm(unit="micro-turn") as progress:
        progress.total = int(3_600 * _HOURS.value / TURN_S)
        return endurance.run_hours(
            model,
            [one["user"] for one in users],
            _HOURS.value,
            pathlib.Path(folder),
            lambda turn: progress.update(turn + 1 - progress.n) if turn % 100 == 0 else None,
        )


# Kills.


def _pcm(user: int, turn: int) -> np.ndarray:
    """PCM float32[3200] of a user of --what=kill in a micro-turn: noise in bursts."""
    rng = np.random.default_rng([user, turn])
    return (0.1 * (turn // 10 % 2) * rng.standard_normal(3_200)).astype(np.float32)


def _digest(reply: interaction.Reply | None) -> int:
    if reply is None:
        return 0
    leaves = reply.audio, reply.text, reply.user_transcript
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))


def live_until_killed(folder: pathlib.Path) -> None:
    """Runs sessions in real time, saves them every 2 s, and logs a digest of each reply."""
    model, log = interaction.load(_MODEL.value), (folder / "log.jsonl").open("a")
    engine = Engine(model, _KILL_ROWS)
    for user in range(_KILL_ROWS):
        engine.open(seed=user).name = str(user)
    Snapshots(engine, folder / "saved")
    print("ready", flush=True)
    due = time.monotonic()
    while True:
        for session in engine.sessions:
            session.give(_pcm(session.seed, session.stats.turns))
        engine.tick()
        for session in engine.sessions:
            line = {"user": session.seed, "turn": session.stats.turns - 1}
            log.write(json.dumps(line | {"digest": _digest(session.reply)}) + "\n")
        log.flush()
        due += TURN_S
        time.sleep(max(0.0, due - time.monotonic()))


def _kill_once(
    folder: pathlib.Path, model: interaction.InteractionModel, rng: random.Random
) -> int:
    """Micro-turns of which the log is repeated bit for bit after a kill; 0 if any differs."""
    command = [sys.executable, "-m", "experiments.soak", "--what=kill", f"--child={folder}"]
    command += [f"--model={_MODEL.value}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or "ready" not in process.stdout.readline():
        raise RuntimeError("the engine did not start; run the command of its process by hand")
    time.sleep(rng.uniform(*_KILL_S))
    process.kill()
    process.wait()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[:-1]]
    known = {(line["user"], line["turn"]): line["digest"] for line in lines}
    last = max(turn for _, turn in known)
    engine, repeated = Engine(model, _KILL_ROWS), 0
    for path in sorted((folder / "saved").glob(f"*{SUFFIX}")):
        engine.restore(path)
    sessions = engine.sessions
    late = [last - session.stats.turns > 2 * 2.0 / TURN_S for session in sessions]
    if len(sessions) < _KILL_ROWS or any(late):
        return 0
    while any(session.stats.turns <= last for session in sessions):
        for session in sessions:
            session.give(_pcm(session.seed, session.stats.turns))
        engine.tick()
        for session in sessions:
            key = session.seed, session.stats.turns - 1
            if key in known and known[key] != _digest(session.reply):
                return 0
            repeated += key in known
    return repeated


def run_kill() -> dict[str, Any]:
    """Runs --what=kill."""
    model, rng, repeated = interaction.load(_MODEL.value), random.Random(_SEED.value), []
    for _ in tqdm(range(_COUNT.value), unit="kill"):
        with tempfile.TemporaryDirectory() as folder:
            repeated.append(_kill_once(pathlib.Path(folder), model, rng))
    continued = sum(turns > 0 for turns in repeated)
    return {"kills": len(repeated), "continued": continued, "turns_repeated": repeated}


def run_moves() -> dict[str, Any]:
    """Runs --what=moves."""
    users = [one["user"] for one in make_users(_USERS, _SEED.value)]
    plain = [one["user"] for one in make_plain_users(_USERS, _USER_TURNS, _SEED.value)]
    model = interaction.load(_MODEL.value)

    def elsewhere(folder: pathlib.Path) -> None:
        command = [sys.executable, "-m", "experiments.soak", "--what=moves", f"--child={folder}"]
        subprocess.run([*command, f"--model={_MODEL.value}"], check=True)

    with tempfile.TemporaryDirectory() as place, tqdm(total=_COUNT.value, unit="move") as progress:
        known = _COUNT.value, _SEED.value, pathlib.Path(place), elsewhere, progress.update
        return moves.run_moves(model, users, plain, *known)


def run_corrections() -> dict[str, Any]:
    """Runs --what=corrections."""
    with tqdm(unit="micro-turn") as progress:
        model, reasoner = interaction.load(_MODEL.value), load_reasoner()
        seen = corrections.correct(
            model, reasoner, _COUNT.value, _SEED.value, lambda _: progress.update()
        )
    return corrections.summarise(seen)


def run_tools() -> dict[str, Any]:
    """Runs --what=tools."""
    count = _COUNT.value
    told = failing_tools.tell(load_reasoner(), count, _SEED.value, usable=count // 2)
    found = tqdm(told, total=count + count // 2, unit="request")
    return failing_tools.summarise(list(found))


def run_files() -> dict[str, Any]:
    """Runs --what=files."""
    return crafted_files.fuzz_session_files(_COUNT.value, _SEED.value)


def run_chunks() -> dict[str, Any]:
    """Runs --what=chunks."""
    return fuzzed_chunks.fuzz_chunks(interaction.load(_MODEL.value), _COUNT.value, _SEED.value)


_RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "sessions": run_sessions,
    "network": run_network,
    "hours": run_hours,
    "kill": run_kill,
    "moves": run_moves,
    "tools": run_tools,
    "corrections": run_corrections,
    "files": run_files,
    "chunks": run_chunks,
}


def main(argv: list[str]) -> None:
    """Runs one kind, and prints and writes its figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if _CHILD.value is not None and _WHAT.value == "moves":
        moves.go_on(interaction.load(_MODEL.value), pathlib.Path(_CHILD.value))
        return
    if _CHILD.value is not None:
        live_until_killed(pathlib.Path(_CHILD.value))
    figures = _RUNS[_WHAT.value]()
    print(json.dumps(figures, indent=2))
    write_figures(figures, _JSON.value)


if __name__ == "__main__":
    app.run(main)
