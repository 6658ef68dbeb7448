"""Whatever goes wrong, a session's place is free again, and little of it is kept."""

import asyncio
import json
import logging
import os
import pathlib
import socket as sockets
import time
from typing import Any

import pytest
import websockets

from interaction.serve.limits import Limits
from tests.background.fakes import delegate
from tests.serve.clients import answer, bare, house
from tests.serve.echo import EchoModel
from tests.serve.test_realtime import FUNCTION
from tests.serve.test_realtime_refusals import bare as realtime, create, update

DEEP = json.loads("[" * 900 + "]" * 900)


async def empty(one: Any, limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while one.engine.sessions or one.cards:
            await asyncio.sleep(0.05)


def test_after_values_that_are_too_deep(tmp_path: pathlib.Path) -> None:
    async def run(address: str, one: Any) -> None:
        responses = {"type": "responses", "responses": {"x": DEEP}}
        session = {"model": "demo", "delegation": responses}
        async with bare(address, started=False) as socket:
            error = (await answer(socket, {"type": "session.start", "session": session}))["error"]
            assert error["code"] == "invalid_json"
        await empty(one)
        async with realtime(address) as socket:
            await answer(socket, update(tools=[FUNCTION]), "session.updated")
            call = "response.function_call_arguments.done"
            async with asyncio.timeout(8):
                while (told := json.loads(await socket.recv()))["type"] != call:
                    pass
            deep = create(type="function_call_output", call_id=told["call_id"], output="[" * 4_000)
            assert (await answer(socket, deep, "conversation.item.done"))["item"]
        await empty(one)

    with house(EchoModel(delegate("what time is it") * 3), folder=tmp_path) as (address, one):
        asyncio.run(run(address, one))


def test_after_a_mistake_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(address: str, one: Any) -> None:
        def fail(*_: object) -> None:
            raise KeyError("a mistake")

        monkeypatch.setattr("interaction.serve.live.live_session.LiveSession._update", fail)
        async with bare(address) as socket:
            await socket.send('{"type": "session.update", "session": {}}')
            with pytest.raises(websockets.ConnectionClosed) as ended:
                while True:
                    await socket.recv()
            assert ended.value.rcvd.code == 1011
        await empty(one)

    with house() as (address, one):
        asyncio.run(run(address, one))


def test_a_reader_that_stops_does_not_fill_the_memory() -> None:
    async def run(address: str, one: Any) -> None:
        async with realtime(address) as socket:
            await answer(socket, update(), "session.updated")
            socket.transport.pause_reading()
            sent = 0
            while one.engine.sessions and sent < 300:
                await socket.send(json.dumps(update(prompt=os.urandom(50_000).hex())))
                sent += 1
            await empty(one)
        assert (
            'interaction_sessions_ended_total{reason="overrun"} 1.0' in one.metrics.text().decode()
        )

    with house(limits=Limits(event_bytes=1 << 20)) as (address, one):
        asyncio.run(run(address, one))


def test_a_connection_that_asked_once_does_not_stay() -> None:
    with house(limits=Limits(connections=3, start_s=0.5)) as (address, _):
        host, port = address.split(":")
        for begin in (b"GET /about.json HTTP/1.1\r\nHost: localhost\r\n\r\nG", b"G", b""):
            with sockets.create_connection((host, int(port))) as one:
                one.sendall(begin)
                one.settimeout(5)
                began = time.monotonic()
                while one.recv(65_536):
                    pass
                assert time.monotonic() - began < 3


def test_a_server_that_ends_does_not_wait_for_those_who_say_nothing() -> None:
    async def run(address: str, one: Any) -> None:
        async with realtime(address) as first, bare(address, started=False) as second:
            one.server.should_exit = True
            for socket in (first, second):
                told = json.loads(await asyncio.wait_for(socket.recv(), 5))
                assert told["error"]["code"] == "server_full"

    with house() as (address, one):
        asyncio.run(run(address, one))


def test_nothing_is_left_on_disk_but_what_can_be_gone_on_with(tmp_path: pathlib.Path) -> None:
    async def run(address: str, one: Any) -> None:
        async with realtime(address) as socket:
            await answer(socket, update(), "session.updated")
            await asyncio.sleep(2.5)  # it is saved
        names = []
        for _ in range(3):
            async with bare(address) as socket:
                names += [card.id for card in one.cards.values()]
                socket.transport.abort()
            await empty(one)
        kept = sorted(path.stem for path in (tmp_path / "left").glob("*.json"))
        assert kept == sorted(names[-2:])

    with house(folder=tmp_path, limits=Limits(kept_a_client=2)) as (address, one):
        asyncio.run(run(address, one))
    assert not list((tmp_path / "open").iterdir())


def test_no_id_and_no_secret_is_logged(
    caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path
) -> None:
    caplog.set_level(logging.INFO)

    async def run(address: str) -> None:
        async with bare(address) as socket:
            socket.transport.abort()
        start = {"type": "session.start", "session": {}}
        async with bare(address, started=False, path="/session_abc/fork?api_key=secret") as socket:
            await answer(socket, start)

    with house(folder=tmp_path) as (address, one):
        asyncio.run(run(address))
        asyncio.run(empty(one))
    assert "session_abc" not in caplog.text and "secret" not in caplog.text
    assert not any(path.stem in caplog.text for path in (tmp_path / "left").glob("*.json"))
