"""A server in a process of its own, and simple clients of it."""

import asyncio
import base64
import collections
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import websockets

RATE, PIECE = 16_000, 640  # samples a second; samples of a message, 40 ms


class Server:
    """A server in a process of its own."""

    def __init__(self, rows: int, folder: pathlib.Path, port: int = 0, more: str = "") -> None:
        """Starts it, with one more flag, and waits until it listens.

        Raises:
          RuntimeError: It did not start.
        """
        command = [sys.executable, "-m", "experiments.serve", f"--port={port}", f"--rows={rows}"]
        command += [f"--folder={folder}", f"--sessions={2 * rows}"]
        command += [more] * bool(more)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = ""
        for line in self.process.stdout or ():
            found = re.search(r"open http://(\S+)", line)
            if found:
                self.address = found[1]
                break
        if not self.address:
            raise RuntimeError("the server did not start; run experiments.serve by hand")
        # Its log is read and dropped, so that it never waits.
        drain = (self.process.stdout, 0)
        threading.Thread(target=collections.deque, args=drain, daemon=True).start()

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
