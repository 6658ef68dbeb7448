"""A server of an echo, OpenAI's own client, and a bare WebSocket."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import openai
import websockets

from interaction.engine.engine import Engine
from interaction.serve.house import House
from tests.serve.echo import EchoModel, serving

RATE = 24_000
TONE = (8_000 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype("<i2")


@contextlib.contextmanager
def house(model: EchoModel | None = None, rows: int = 2, **more: Any) -> Any:
    one = House(Engine(model or EchoModel(), rows), "demo", **more)
    with serving(one) as address:
        yield address, one


@contextlib.asynccontextmanager
async def connect(
    address: str, session: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator:
    client = openai.AsyncOpenAI(api_key="secret", base_url=f"http://{address}/v1")
    async with client.live.connect(**more) as live:
        await live.session.start(session={"model": "demo"} | (session or {}))
        yield live


async def until(live: Any, wanted: Callable[[Any], bool] | str, limit_s: float = 10) -> list[Any]:
    """Events up to the first one that is wanted."""
    found, test = [], wanted if callable(wanted) else lambda one: one.type == wanted
    async with asyncio.timeout(limit_s):
        while not found or not test(found[-1]):
            found.append(await live.recv())
    return found


async def talk(live: Any, pcm: np.ndarray, piece_s: float = 0.05) -> None:
    """Sends sound in real time."""
    step = round(piece_s * RATE)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for place in range(0, len(pcm), step):
        data = base64.b64encode(pcm[place : place + step].tobytes()).decode()
        await live.session.input_audio.append(audio=data)
        await asyncio.sleep(max(0, began + (place + step) / RATE - loop.time()))


def sound(events: list[Any]) -> np.ndarray:
    parts = [one.delta for one in events if one.type == "session.output_audio.delta"]
    return np.frombuffer(b"".join(map(base64.b64decode, parts)), "<i2").astype(np.float64)


@contextlib.asynccontextmanager
async def bare(address: str, *, started: bool = True, path: str = "", **more: Any) -> AsyncIterator:
    async with websockets.connect(f"ws://{address}/v1/live/sessions{path}", **more) as socket:
        if started:
            await socket.send(json.dumps({"type": "session.start", "session": {"model": "demo"}}))
            first = json.loads(await socket.recv())
            assert first["type"] == "session.started", first
        yield socket


async def answer(socket: Any, message: Any, kind: str = "error") -> dict[str, Any]:
    await socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
    async with asyncio.timeout(5):
        while True:
            got = json.loads(await socket.recv())
            if got["type"] == kind:
                return got


def inner(one: Any) -> str:
    wrapped = getattr(one, "event", None) or {"type": ""}
    return wrapped["type"] if isinstance(wrapped, dict) else wrapped.type
