r"""Many clients talk to a server at once, and servers are killed while clients talk.

python -m experiments.load_serve --sessions=16 --minutes=10 --kills=10 --json=out/load_serve.json

Starts `experiments.serve` in a process of its own and fills it over WebSocket, in real time; every
second one client leaves and another one joins. Then servers end by SIGKILL and by SIGTERM, so many
times each, and their clients come back with the ids of their sessions.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import websockets
from absl import app, flags
from tqdm import tqdm

from interaction.data.audio_file import read_audio
from interaction.evaluation.endurance import memory_mb

_SESSIONS = flags.DEFINE_integer("sessions", 16, "Clients at once.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 10.0, "Length of the load, real time.")
_KILLS = flags.DEFINE_integer("kills", 10, "Ends by SIGKILL, and as many by SIGTERM.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of what is drawn.")
_JSON = flags.DEFINE_string("json", None, "File for the figures.")
ASSET = pathlib.Path(__file__).parent / "assets" / "user.flac"
RATE, PIECE = 16_000, 640  # samples a second; samples of a message, 40 ms
TALK_S = (3.0, 8.0)  # s after which a server is killed
_BACK_S = 60.0  # s that a client tries to come back


class Server:
    """A server in a process of its own."""

    def __init__(self, rows: int, folder: pathlib.Path, port: int = 0) -> None:
        """Starts it and waits until it listens.

        Raises:
          RuntimeError: It did not start.
        """
        command = [sys.executable, "-m", "experiments.serve", f"--port={port}", f"--rows={rows}"]
        command += [f"--folder={folder}", f"--sessions={2 * rows}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = ""
        for line in self.process.stdout or ():
            found = re.search(r"open http://(\S+)", line)
            if found:
                self.address = found[1]
                break
        if not self.address:
            raise RuntimeError("the server did not start; run experiments.serve by hand")

    def end(self, how: int = signal.SIGTERM) -> None:
        """Ends the process by a signal, and waits for it."""
        self.process.send_signal(how)
        self.process.wait(60)

    def metrics(self) -> dict[str, float]:
        """The server's figures without labels, by name."""
        with urllib.request.urlopen(f"http://{self.address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.split() for line in lines if line[0] != "#" and "{" not in line]
        return {name: float(value) for name, value in pairs}


def pieces(user: np.ndarray, start: int) -> Iterator[str]:
    """Messages with the sound of a user, int16[n], from a sample on and again and again."""
    for place in itertools.count(start, PIECE):
        pcm = np.take(user, np.arange(place, place + PIECE), mode="wrap")
        data = base64.b64encode(pcm.astype("<i2").tobytes()).decode()
        yield json.dumps({"type": "session.input_audio.append", "audio": data})


def first_message(fresh: bool) -> str:
    """`session.start` of a fresh session, or of one that goes on."""
    session: dict[str, Any] = {"audio": {"format": {"type": "audio/pcm", "rate": RATE}}}
    if fresh:
        session |= {"model": "demo", "delegation": {"type": "responses"}}
    return json.dumps({"type": "session.start", "session": session})


class Client:
    """One user of the server."""

    def __init__(self, user: np.ndarray, start: int) -> None:
        """Takes the user's sound, int16[n] at 16 kHz, and the sample that it begins with."""
        self._messages = pieces(user, start)
        self.session, self.deltas, self.resumed_s = "", 0, 0.0
        self.codes: list[str] = []
        self.errors: list[str] = []
        self.stop = asyncio.Event()

    async def talk(self, address: str, fork: str = "") -> str:
        """Talks until `stop` is set or the connection is lost; returns how it ended."""
        path = f"/{fork}/fork" if fork else ""
        url = f"ws://{address}/v1/live/sessions{path}"
        try:
            async with websockets.connect(url, max_size=None) as socket:
                await socket.send(first_message(not fork))
                reader = asyncio.create_task(self._read(socket))
                due = time.monotonic()
                while not self.stop.is_set() and not reader.done():
                    if self.session:
                        await socket.send(next(self._messages))
                    due += PIECE / RATE
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not reader.done():
                    await socket.send(json.dumps({"type": "session.close"}))
                return await asyncio.wait_for(reader, 10)
        except (OSError, websockets.WebSocketException, TimeoutError) as error:
            return f"lost: {type(error).__name__}"

    async def _read(self, socket: websockets.ClientConnection) -> str:
        try:
            async for text in socket:
                event = json.loads(text)
                kind = event["type"]
                if kind == "session.started":
                    self.session = event["session"]["id"]
                elif kind == "session.output_audio.delta":
                    self.deltas += 1
                elif kind == "info":
                    self.codes.append(event["code"])
                    if event["code"] == "session_resumed":
                        self.resumed_s = float(event["message"].split()[-2])
                elif kind == "error":
                    self.errors.append(event["error"]["code"])
                elif kind == "session.closed":
                    return event["reason"]
        except websockets.WebSocketException:
            pass
        return "lost"


async def load(server: Server, user: np.ndarray, rng: random.Random) -> dict[str, Any]:
    """Fills a server with clients of a user, int16[n] at 16 kHz; returns the figures."""
    seconds, most = 60 * _MINUTES.value, _SESSIONS.value
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


def run() -> dict[str, Any]:
    """Runs the load and the kills; returns the figures."""
    user = np.round(read_audio(ASSET) * 32_767).astype(np.int16)
    rng = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as place:
        server = Server(_SESSIONS.value, pathlib.Path(place))
        try:
            figures = asyncio.run(load(server, user, rng))
        finally:
            server.end()
    lost: dict[str, list[float | None]] = {"SIGKILL": [], "SIGTERM": []}
    kills = [name for name in lost for _ in range(_KILLS.value)]
    for name in tqdm(kills, desc="kills", unit="kill"):
        lost[name].append(asyncio.run(come_back(signal.Signals[name], user, rng)))
    went_on = {name: [one for one in some if one is not None] for name, some in lost.items()}
    return figures | {
        "kills": len(kills),
        "continued": sum(map(len, went_on.values())),
        "lost_s_max": {name: round(max(some, default=0.0), 2) for name, some in went_on.items()},
    }


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    figures = run()
    print(json.dumps(figures, indent=2))
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
