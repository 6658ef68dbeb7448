"""Sessions that lose their client or their server, and clients that read too slowly."""

import asyncio
import base64
import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
import openai
import pytest
import websockets

from interaction.engine import session_record
from interaction.serve.house import House
from interaction.serve.limits import Door, Limits
from interaction.types import Special
from tests.background.fakes import words
from tests.serve.clients import TONE, answer, bare, connect, house, talk, until
from tests.serve.echo import EchoModel


def test_a_lost_session_goes_on_and_only_for_its_client(tmp_path: pathlib.Path) -> None:
    model = EchoModel([Special.SILENT] * 20 + words("one two"))
    mine, foreign = ({"Authorization": f"Bearer {name}"} for name in ("a", "b"))
    start = {"type": "session.start", "session": {}}

    async def refused(address: str, name: str, headers: dict[str, str]) -> bool:
        async with bare(
            address, started=False, path=f"/{name}/fork", additional_headers=headers
        ) as socket:
            return (await answer(socket, start))["error"]["code"] == "session_not_found"

    async def run(address: str) -> None:
        async with bare(address, started=False, additional_headers=mine) as socket:
            first = {"type": "session.start", "session": {"model": "demo"}}
            name = (await answer(socket, first, "session.started"))["session"]["id"]
            for _ in range(3):
                await answer(
                    socket, {"type": "session.input_audio.mute"}, "session.input_audio.muted"
                )
                await asyncio.sleep(0.2)
            assert await refused(address, name, foreign)
            socket.transport.abort()
        async with asyncio.timeout(15):
            while not (tmp_path / "left" / f"{name}.json").exists():
                await asyncio.sleep(0.02)
        assert await refused(address, name, foreign)
        assert await refused(address, "session_none", mine)
        assert await refused(address, "a.b", mine)
        async with bare(
            address, started=False, path=f"/{name}/fork", additional_headers=mine
        ) as socket:
            started = await answer(socket, start, "session.started")
            assert started["session"]["id"] != name
            info = json.loads(await socket.recv())
            assert info["code"] == "session_resumed" and name in info["message"]
            text = ""
            async with asyncio.timeout(15):
                while "two" not in text:
                    got = json.loads(await socket.recv())
                    text += got["delta"] if got["type"].endswith("put_transcript.delta") else ""
            assert text.strip() == "one two"

    with house(model, door=Door(["a", "b"]), folder=tmp_path) as (address, _):
        asyncio.run(run(address))


def test_a_client_that_comes_back_at_once_goes_on(tmp_path: pathlib.Path) -> None:
    async def run(address: str) -> None:
        for wait_s in (0.0, 0.0, 0.01, 0.05, 0.2):
            async with bare(address) as socket:
                name = next(iter(one.cards))
                socket.transport.abort()
            await asyncio.sleep(wait_s)
            async with bare(address, started=False, path=f"/{name}/fork") as socket:
                start = {"type": "session.start", "session": {}}
                await answer(socket, start, "session.started")
                assert name in json.loads(await socket.recv())["message"]
            async with asyncio.timeout(5):
                while one.engine.sessions or one.cards:
                    await asyncio.sleep(0.02)

    with house(rows=4, folder=tmp_path) as (address, one):
        asyncio.run(run(address))


def test_the_record_of_a_stored_session_is_its_client_s(tmp_path: pathlib.Path) -> None:
    async def run(address: str) -> str:
        async with connect(address, {"store": True}) as live:
            name = (await until(live, "session.started"))[-1].session.id
            await talk(live, TONE)
            await live.session.close()
            await until(live, "session.closed")
        return name

    with house(door=Door(["secret", "b"]), folder=tmp_path) as (address, _):
        name = asyncio.run(run(address))
        mine, foreign = (
            openai.OpenAI(api_key=key, base_url=f"http://{address}/v1") for key in ("secret", "b")
        )
        (tmp_path / "mine").write_bytes(mine.live.sessions.download_recording(name).read())
        with pytest.raises(openai.NotFoundError):
            foreign.live.sessions.download_recording(name)
        with pytest.raises(openai.NotFoundError):
            mine.live.sessions.download_recording("session_none")
    turns = session_record.read(tmp_path / "mine").entries
    assert len(turns) > 4
    heard = np.concatenate([turn.audio for turn in turns])
    assert 0.2 < np.abs(heard).max() < 0.3
    np.testing.assert_allclose(np.concatenate([turn.speech for turn in turns]), heard / 2)


def test_sessions_outlive_their_server(tmp_path: pathlib.Path) -> None:
    start = {"type": "session.start", "session": {"model": "demo"}}

    async def begin(address: str, stop: Callable[[], None]) -> tuple[str, list[dict], int]:
        async with bare(address, started=False) as socket:
            name = (await answer(socket, start, "session.started"))["session"]["id"]
            await asyncio.sleep(0.5)
            stop()
            last = []
            with pytest.raises(websockets.ConnectionClosed) as ended:
                while True:
                    last.append(json.loads(await socket.recv()))
            return name, last, ended.value.rcvd.code

    async def go_on(address: str, name: str) -> str:
        async with bare(address, started=False, path=f"/{name}/fork") as socket:
            await answer(socket, start, "session.started")
            return json.loads(await socket.recv())["message"]

    with house(folder=tmp_path) as (address, one):
        end = functools.partial(setattr, one.server, "should_exit", True)  # as a signal does
        name, last, code = asyncio.run(begin(address, end))
    assert code == 1012 and last[-1]["type"] == "session.closed"
    assert any(event.get("code") == "server_restarts" for event in last)
    for place in ("open", "left"):  # of another version of the server
        (tmp_path / place / "session_1.json").write_text('{"id": "session_1", "version": 9}')
    with house(folder=tmp_path) as (address, _):
        assert name in asyncio.run(go_on(address, name))
    assert (tmp_path / "open" / "session_1.json").exists()


def test_a_slow_reader_loses_speech_and_is_told() -> None:
    limits = Limits(audio_waiting=3)

    async def run(address: str, one: House) -> None:
        async with bare(address) as socket:
            socket.transport.pause_reading()
            pcm = base64.b64encode(bytes(2 * 4_800)).decode()
            message = json.dumps({"type": "session.input_audio.append", "audio": pcm})
            await socket.send(message)
            await asyncio.sleep(0.5)
            # The buffers of the kernel hold seconds of speech; this outbox is filled by hand.
            session = one.engine.sessions[0]
            for _ in range(4_000):
                session._pass(session._listeners, session.reply)
            await asyncio.sleep(0.5)
            socket.transport.resume_reading()
            got: dict = {}
            async with asyncio.timeout(20):
                while got.get("code") != "output_audio_lost":
                    got = json.loads(await socket.recv())
            assert int(got["message"].split()[0]) >= 200 and "too slowly" in got["message"]

    with house(limits=limits) as (address, one):
        asyncio.run(run(address, one))
