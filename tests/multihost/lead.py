"""One of several processes over which the model of an engine lies; process 0 leads."""

import json
import os
import pathlib
import sys
import time

import jax
import numpy as np

import interaction
from experiments.train import join_hosts
from interaction.distributed import sharding
from interaction.engine.engine import Engine
from interaction.engine.follower import follow
from interaction.engine.leader import HostLostError, Leader
from interaction.engine.rows import BatchModel
from interaction.engine.session import Session
from interaction.engine.session_events import CLOSED
from interaction.engine.snapshots import Snapshots

ROWS = 6
LOST = 3  # exit code after another process was lost
Replies = dict[str, list[np.ndarray]]


def tick(engine: Engine, sessions: dict[str, Session], replies: Replies) -> None:
    """Takes a micro-turn, in which every session hears noise of its own."""
    for name, session in sessions.items():
        key = [*name.encode(), len(replies.setdefault(name, []))]
        noise = np.random.default_rng(key).normal(0, 0.1, 3_200)
        session.give(noise.astype(np.float32))
    engine.tick()
    for name, session in sessions.items():
        reply = session.reply
        assert reply is not None
        told = reply.audio, reply.text[None], reply.user_transcript
        replies[name].append(np.concatenate([np.float32(one) for one in told]))


def talk(engine: Engine, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Sessions join, leave and move; each session's replies float32[turns, numbers]."""
    replies: Replies = {}
    sessions = {"a": engine.open(seed=3), "b": engine.open(seed=5)}
    for _ in range(3):
        tick(engine, sessions, replies)
    sessions["c"] = engine.open(seed=7)
    for _ in range(3):
        tick(engine, sessions, replies)
    engine.save(sessions["b"], folder / "b")
    sessions["d"] = engine.fork(sessions["a"])
    tick(engine, sessions, replies)
    engine.close(sessions.pop("c"))
    tick(engine, sessions, replies)
    engine.rewind(sessions["a"], 2)
    sessions["e"] = engine.restore(folder / "b")
    for _ in range(3):
        tick(engine, sessions, replies)
    for session in sessions.values():
        engine.close(session)
    return {name: np.stack(turns) for name, turns in replies.items()}


def go_on(model: BatchModel, files: list[pathlib.Path]) -> dict[str, np.ndarray]:
    """Restores sessions and takes some micro-turns."""
    engine, replies = Engine(model, ROWS), {}
    sessions = {file.name: engine.restore(file) for file in sorted(files)}
    for _ in range(3):
        tick(engine, sessions, replies)
    return {name: np.stack(turns) for name, turns in replies.items()}


def lose(engine: Engine, folder: pathlib.Path) -> None:
    """Runs sessions until a process is lost; writes why they ended, and when."""
    ends: list[tuple[str, float]] = []
    with engine, Snapshots(engine, folder / "sessions", 0.5):  # raises when it is left
        for seed in (1, 2):
            session = engine.open(seed=seed)
            session.subscribe(
                lambda event: event.kind == CLOSED and ends.append((event.text, time.time()))
            )
        while len(ends) < 2:
            time.sleep(0.01)
        try:
            engine.open()
        except RuntimeError as error:
            ends.append((str(error), time.time()))
        (folder / "ends.json").write_text(json.dumps(ends))


def main(what: str, served: str, mesh: str, out: str) -> None:
    """Leads or follows; devices of the processes alternate on the mesh."""
    join_hosts()
    turns = np.reshape(np.array(jax.devices()), (jax.process_count(), -1)).T.ravel().tolist()
    model = interaction.load(served, mesh=sharding.make_mesh(json.loads(mesh), turns))
    folder = pathlib.Path(out)
    if jax.process_index():
        try:
            follow(model)
        except HostLostError as error:
            print(error, flush=True)
            os._exit(LOST)  # the devices wait for the lost process
        return
    try:
        with Leader(model, "localhost") as leader:
            if what == "go_on":
                files = list((folder / "sessions").iterdir())
                np.savez(folder / "went_on.npz", **go_on(leader, files))
            else:
                engine = Engine(leader, ROWS, rewind=4)
                np.savez(folder / "talk.npz", **talk(engine, folder))
                lose(engine, folder)
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(LOST)


if __name__ == "__main__":
    main(*sys.argv[1:])
