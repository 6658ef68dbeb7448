r"""Sends damaged messages to a server: each gets one error, and another client notices nothing.

python -m experiments.fuzz_serve --count=100000 --seed=3 --json=out/fuzz_serve.json
python -m experiments.fuzz_serve --protocol=realtime
"""

import asyncio
import base64
import json
import random
import threading
import time
from typing import Any, NamedTuple

import websockets
from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.figures_file import write_figures
from experiments.serve_client import RATE, first_message
from interaction.evaluation.endurance import memory_mb
from interaction.serve.house import House
from interaction.serve.limits import Limits
from interaction.serve.server import Server

_TOGETHER = 50  # messages before their errors are read
# What a client is told that only listens.
_USUAL = ("session.started", "session.output_audio.delta", "session.usage.updated")
_SOUND = base64.b64encode(bytes(640)).decode()
_LIVE: list[dict[str, Any]] = [
    {"type": "session.input_audio.append", "audio": _SOUND},
    {"type": "session.commentary.append", "content": "one", "delegation_id": None},
    {"type": "session.thinking.append", "content": "one", "delegation_id": "delegation_1"},
    {"type": "session.update", "session": {"delegation": {"type": "client"}}},
    {"type": "session.start", "session": {"model": "demo"}},
    {"type": "interaction.input_frame.append", "frame": "AAAA"},
]
_OUTPUT = {"type": "function_call_output", "call_id": "delegation_1", "output": "one"}
_UPDATE = {"type": "session.update", "session": {"type": "realtime"}}
_REALTIME: list[dict[str, Any]] = [
    {"type": "input_audio_buffer.append", "audio": _SOUND},
    {"type": "conversation.item.create", "item": _OUTPUT},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "a", "content_index": 0, "audio_end_ms": 0},
    {"type": "response.create", "response": {"conversation": "auto"}},
    {"type": "response.cancel", "response_id": "resp_1"},
    _UPDATE,
]


class Protocol(NamedTuple):
    """What is damaged, and how a session begins and is asked whether it still goes on."""

    path: str
    first: str  # a message
    valid: list[dict[str, Any]]
    last: dict[str, Any]  # a message
    answer: str  # the type of the event that answers the last message


PROTOCOLS = {
    "live": Protocol(
        "/v1/live/sessions",
        first_message(True).replace("responses", "client"),
        _LIVE,
        {"type": "session.close"},
        "session.closed",
    ),
    "realtime": Protocol(
        "/v1/realtime", json.dumps(_UPDATE), _REALTIME, _UPDATE, "session.updated"
    ),
}
_VALUES: list[Any] = [
    *(None, True, 0, -1, 1e308, "", " ", "\0", "=", "é" * 99, [], {}, [[]], {"a": {}}, ["x"]),
    *("A" * 100_001, 10**40, "../../etc/passwd", "<script>"),
]


def damaged(rng: random.Random, valid: list[dict[str, Any]]) -> str:
    """A message that no server may take, made from one of those that it takes."""
    message = dict(rng.choice(valid))
    kind = rng.randrange(5)
    if kind == 0:  # no JSON
        text = json.dumps(message)
        return text[: rng.randrange(1, len(text))]
    if kind == 1:
        message[rng.choice(["x", "_", "type ", "audio\0", "__class__"])] = rng.choice(_VALUES)
    elif kind == 2:
        name = rng.choice([name for name in message if name != "type"])
        del message[name]
        return json.dumps(message | {"y": 1})
    elif kind == 3:
        message["type"] = rng.choice([*_VALUES, "session", "session.input_audio", "error"])
    else:
        name = rng.choice([name for name in message if name != "type"])
        message[name] = rng.choice(_VALUES)
        message["z"] = rng.choice(_VALUES)
    return json.dumps(message)


async def listen(socket: websockets.ClientConnection, seen: list[str]) -> None:
    """Collects what another client is told that is no sound, while it sends silence."""

    async def talk() -> None:
        pcm = base64.b64encode(bytes(RATE // 25 * 2)).decode()
        while True:
            await socket.send(json.dumps({"type": "session.input_audio.append", "audio": pcm}))
            await asyncio.sleep(0.04)

    talking = asyncio.create_task(talk())
    try:
        async for text in socket:
            event = json.loads(text)
            if event["type"] not in _USUAL:
                seen.append(event.get("code", event["type"]))
    finally:
        talking.cancel()


async def fuzz(address: str, protocol: Protocol, count: int, rng: random.Random) -> dict[str, Any]:
    """Sends messages over one connection while another one listens."""
    live, url = PROTOCOLS["live"], f"ws://{address}"
    codes: dict[str, int] = {}
    seen: list[str] = []
    async with (
        websockets.connect(url + live.path) as other,
        websockets.connect(url + protocol.path) as socket,
    ):
        await other.send(live.first)
        await socket.send(protocol.first)
        witness = asyncio.create_task(listen(other, seen))
        before, errors = 0.0, 0
        with tqdm(total=count, unit="message") as progress:
            while errors < count:
                some = min(_TOGETHER, count - errors)
                for _ in range(some):
                    await socket.send(damaged(rng, protocol.valid))
                got = 0
                while got < some:
                    event = json.loads(await asyncio.wait_for(socket.recv(), 10))
                    if event["type"] == "error":
                        got += 1
                        code = event["error"]["code"]
                        codes[code] = codes.get(code, 0) + 1
                errors += got
                progress.update(got)
                if not before and errors >= count // 5:
                    before = memory_mb()
        await socket.send(json.dumps(protocol.last))
        more = [""]
        while more[-1] != protocol.answer:
            more.append(json.loads(await asyncio.wait_for(socket.recv(), 10))["type"])
        witness.cancel()
    return {
        "messages": count,
        "errors": errors + more.count("error"),
        "codes": codes,
        "goes_on": more[-1] == protocol.answer,
        "told_to_another_client": seen,
        "memory_growth_mb": round(memory_mb() - before, 1),
    }


def run(protocol: str, count: int, seed: int) -> dict[str, Any]:
    """Serves in a thread, and sends; the arguments are the flags."""
    engine = interaction.Engine(interaction.load("demo"), 2)
    house = House(engine, "demo", limits=Limits(messages_a_second=1e9))
    server = Server(house)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        rng = random.Random(seed)
        return asyncio.run(fuzz(f"127.0.0.1:{port}", PROTOCOLS[protocol], count, rng))
    finally:
        server.should_exit = True
        thread.join(30)


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_enum("protocol", "live", list(PROTOCOLS), "Protocol of the messages.")
    flags.DEFINE_integer("count", 100_000, "Messages.", lower_bound=100)
    flags.DEFINE_integer("seed", 0, "Seed of what is drawn.")
    flags.DEFINE_string("json", None, "File for the figures.")


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    figures = run(given.protocol, given.count, given.seed)
    print(json.dumps(figures, indent=2))
    write_figures(figures, given.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
