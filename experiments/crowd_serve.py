r"""Thousands of connections that want nothing, while one client talks.

python -m experiments.crowd_serve --count=3000 --json=out/crowd_serve.json

A third of them send nothing, a third half a request, a third open a WebSocket and say no more; two
more begin a session and then neither read nor answer, as if their network were gone.
"""

import asyncio
import collections
import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import websockets
from absl import app, flags
from tqdm import tqdm

from experiments.figures_file import write_figures
from experiments.serve_client import Client, Server, first_message
from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.evaluation.endurance import memory_mb

PATHS = ("/v1/live/sessions", "/v1/realtime")
_GONE_S = 90.0  # s for the server to notice that a client is gone
_TOGETHER = 250  # connections that are opened at once


async def mute(address: str, sent: bytes) -> str:
    """A connection that sends a few bytes; returns how the server ended it."""
    host, port = address.rsplit(":", 1)
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        told = await reader.read()
        writer.close()
    except OSError:
        told = b""
    return "refused" if b" 503 " in told else "closed"


async def idle(address: str, path: str) -> str:
    """A WebSocket that says nothing; returns the code of the one error, or how it was refused."""
    codes = []
    try:
        async with websockets.connect(f"ws://{address}{path}", open_timeout=60) as socket:
            async for text in socket:
                event = json.loads(text)
                codes += [event["error"]["code"]] if event["type"] == "error" else []
    except websockets.InvalidStatus as error:
        return "refused" if error.response.status_code == 503 else str(error)
    except (OSError, websockets.WebSocketException):
        pass
    return " ".join(codes) or "closed"


async def vanish(address: str) -> websockets.ClientConnection:
    """A session whose client neither reads nor answers."""
    socket = await websockets.connect(
        f"ws://{address}{PATHS[0]}", ping_interval=None, max_queue=1, close_timeout=0.1
    )
    await socket.send(first_message(True))
    socket.transport.pause_reading()
    return socket


async def crowd(address: str, count: int, limit_s: float) -> dict[str, int]:
    """Opens connections; returns how many ended in each way.

    Args:
      address: Host and port of the server.
      count: How many.
      limit_s: When all have to be over, s.
    """
    room = asyncio.Semaphore(_TOGETHER)
    ends: dict[str, int] = {}

    async def one(number: int) -> None:
        async with room:
            await asyncio.sleep(0.01)
        if number % 3 == 2:
            end = await idle(address, PATHS[number % 2])
        else:
            end = await mute(address, (b"", b"GET /healthz HTTP/1.1\r\nHost: loc")[number % 3])
        ends[end] = ends.get(end, 0) + 1

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    async with asyncio.timeout(limit_s):
        for task in tqdm(asyncio.as_completed(tasks), total=count, unit="connection"):
            await task
    return ends


async def run(server: Server, count: int) -> dict[str, Any]:
    """One client talks, many others do nothing; returns the figures."""
    user = np.round(read_audio(ASSET) * 32_767).astype(np.int16)
    client, pid = Client(user, 0), server.process.pid
    talking = asyncio.create_task(client.talk(server.address))
    await crowd(server.address, count, 300)  # what is kept once
    before = memory_mb(pid)
    gone = [await vanish(server.address) for _ in range(2)]
    ends = await crowd(server.address, count, 300)
    found = await asyncio.to_thread(server.metrics)
    began = time.monotonic()
    while found["interaction_sessions"] > 1 and time.monotonic() < began + _GONE_S:
        await asyncio.sleep(1)
        found = await asyncio.to_thread(server.metrics)
    for socket in gone:
        socket.transport.abort()
    client.stop.set()
    end = await talking
    return {
        "connections": count,
        "ends": ends,
        "sessions_left": int(found["interaction_sessions"]) - 1,  # of those who are gone
        "deadline_misses": int(found["interaction_deadlines_missed_total"]),
        "client": end,
        "told_to_client": dict(collections.Counter(client.codes + client.errors)),
        "memory_growth_mb": round(memory_mb(pid) - before, 1),
    }


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_integer("count", 3_000, "Connections.", lower_bound=10)
    flags.DEFINE_string("json", None, "File for the figures.")


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    with tempfile.TemporaryDirectory() as place:
        server = Server(4, pathlib.Path(place))
        try:
            figures = asyncio.run(run(server, flags.FLAGS.count))
        finally:
            server.end()
    print(json.dumps(figures, indent=2))
    write_figures(figures, flags.FLAGS.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
