r"""Many clients talk to a server at once, and servers are killed while clients talk.

python -m experiments.load_serve --sessions=16 --minutes=10 --kills=10 --json=out/load_serve.json

Starts `experiments.serve` in a process of its own and fills it over WebSocket, in real time; every
second one client leaves and another one joins. Then servers end by SIGKILL and by SIGTERM, so many
times each, and their clients come back with the ids of their sessions.
"""

import asyncio
import contextlib
import json
import pathlib
import random
import signal
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from experiments.figures_file import write_figures
from experiments.serve_client import Client, Server
from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.evaluation.endurance import memory_mb

TALK_S = (3.0, 8.0)  # s after which a server is killed
_BACK_S = 60.0  # s that a client tries to come back


async def load(
    server: Server, user: np.ndarray, rng: random.Random, most: int, seconds: float
) -> dict[str, Any]:
    """Fills a server with clients; returns the figures.

    Args:
      server: The server.
      user: int16[n] at 16 kHz, what the clients say.
      rng: Draws where in the recording each begins.
      most: Clients at once.
      seconds: Length, s.
    """
    running: list[tuple[Client, asyncio.Task]] = []
    ends: list[str] = []
    codes: list[str] = []
    errors: list[str] = []
    early = late = 0.0

    async def leave(client: Client, task: asyncio.Task) -> None:
        client.stop.set()
        ends.append(await task)
        codes.extend(client.codes)
        errors.extend(client.errors)

    leaving = set()
    for second in tqdm(range(round(seconds)), desc="load", unit="s"):
        began = time.monotonic()
        if len(running) == most:
            leaving.add(asyncio.create_task(leave(*running.pop(0))))
            await asyncio.sleep(0.5)
        client = Client(user, rng.randrange(len(user)))
        running.append((client, asyncio.create_task(client.talk(server.address))))
        if second == round(seconds) // 5:
            early = memory_mb(server.process.pid)
        await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))
    late = memory_mb(server.process.pid)
    found = await asyncio.to_thread(server.metrics)
    await asyncio.gather(*(leave(*one) for one in running), *leaving)
    return {
        "sessions": most,
        "opened": len(ends),
        "closed_well": sum(end == "close_requested" for end in ends),
        "steps": int(found["interaction_steps_total"]),
        "deadline_misses": int(found["interaction_deadlines_missed_total"]),
        "chunks_lost": int(found["interaction_chunks_lost_total"]),
        "errors": len(errors),
        "memory_growth_mb": round(late - early, 1),
    }


async def come_back(how: int, user: np.ndarray, rng: random.Random) -> float | None:
    """Seconds of talk that are lost after a server ended; None if the client did not go on.

    Args:
      how: Signal that ends the server.
      user: int16[n] at 16 kHz, what the client says.
      rng: Draws when the server ends.
    """
    with tempfile.TemporaryDirectory() as place:
        server = await asyncio.to_thread(Server, 2, pathlib.Path(place))
        port = int(server.address.rsplit(":", 1)[1])
        client = Client(user, rng.randrange(len(user)))
        task = asyncio.create_task(client.talk(server.address))
        await asyncio.sleep(rng.uniform(*TALK_S))
        await asyncio.to_thread(server.end, how)
        await task
        talked_s, name = client.deltas * 0.2, client.session
        server = await asyncio.to_thread(Server, 2, pathlib.Path(place), port)
        again = Client(user, 0)
        task = asyncio.create_task(again.talk(server.address, fork=name))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BACK_S):
                while not (again.deltas > 5 and "session_resumed" in again.codes):
                    await asyncio.sleep(0.05)
        went_on = again.deltas > 5 and "session_resumed" in again.codes
        again.stop.set()
        await task
        await asyncio.to_thread(server.end)
        return talked_s - again.resumed_s if went_on else None


def run(sessions: int, minutes: float, kills: int, seed: int) -> dict[str, Any]:
    """Runs the load and the kills; the arguments are the flags. Returns the figures."""
    user = np.round(read_audio(ASSET) * 32_767).astype(np.int16)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        server = Server(sessions, pathlib.Path(place))
        try:
            figures = asyncio.run(load(server, user, rng, sessions, 60 * minutes))
        finally:
            server.end()
    print(json.dumps(figures, indent=2), flush=True)
    lost: dict[str, list[float | None]] = {"SIGKILL": [], "SIGTERM": []}
    order = [name for name in lost for _ in range(kills)]
    for name in tqdm(order, desc="kills", unit="kill"):
        lost[name].append(asyncio.run(come_back(signal.Signals[name], user, rng)))
    went_on = {name: [one for one in some if one is not None] for name, some in lost.items()}
    return figures | {
        "kills": len(order),
        "continued": sum(map(len, went_on.values())),
        "lost_s_max": {name: round(max(some, default=0.0), 2) for name, some in went_on.items()},
    }


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_integer("sessions", 16, "Clients at once.", lower_bound=1)
    flags.DEFINE_float("minutes", 10.0, "Length of the load, real time.")
    flags.DEFINE_integer("kills", 10, "Ends by SIGKILL, and as many by SIGTERM.", 0)
    flags.DEFINE_integer("seed", 0, "Seed of what is drawn.")
    flags.DEFINE_string("json", None, "File for the figures.")


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    figures = run(given.sessions, given.minutes, given.kills, given.seed)
    print(json.dumps(figures, indent=2))
    write_figures(figures, given.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
