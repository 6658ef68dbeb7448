"""What the Live protocol refuses, and that nothing else changes."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
import websockets

from interaction.engine.engine import Engine
from interaction.serve.house import House
from interaction.serve.limits import Door, Limits, RefusedError
from tests.serve.clients import answer, bare, house
from tests.serve.echo import EchoModel, serving


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 5_000, "invalid_json", None),
        ("3", "invalid_json", None),
        (b"\x00", "invalid_json", None),
        ({"type": "nothing"}, "unknown_event", "type"),
        ({"type": 3}, "missing_required_parameter", "type"),
        ({"type": "session.input_audio.append"}, "missing_required_parameter", "audio"),
        ({"type": "session.input_audio.append", "audio": 3}, "invalid_value", "audio"),
        ({"type": "session.input_audio.append", "audio": "?"}, "invalid_value", "audio"),
        ({"type": "session.input_audio.append", "audio": "AA=="}, "invalid_value", None),
        ({"type": "session.input_audio.append", "audio": "", "x": 1}, "unknown_parameter", "x"),
        ({"type": "session.commentary.append"}, "missing_required_parameter", "content"),
        ({"type": "session.commentary.append", "content": "a"}, "invalid_value", None),
        (
            {"type": "session.commentary.append", "content": " ", "delegation_id": None},
            "invalid_value",
            "content",
        ),
        (
            {"type": "session.commentary.append", "content": "hello", "delegation_id": None},
            "invalid_value",
            None,
        ),
        (
            {"type": "session.commentary.append", "content": "a", "delegation_id": "b"},
            "delegation_not_found",
            "delegation_id",
        ),
        ({"type": "session.start", "session": {"model": "demo"}}, "already_started", None),
        ({"type": "session.update", "session": {"model": "x"}}, "immutable_parameter", "session"),
        (
            {"type": "session.update", "session": {"delegation": {"type": "responses"}}},
            "immutable_parameter",
            "session",
        ),
        ({"type": "interaction.input_frame.append", "frame": "AAAA"}, "invalid_value", None),
    ],
)
def test_a_bad_message_is_refused_alone(
    address: str, message: Any, code: str, param: str | None
) -> None:
    if isinstance(message, dict):
        message = message | {"event_id": "mine"}

    async def run() -> None:
        async with bare(address) as socket:
            error = (await answer(socket, message))["error"]
            assert error["code"] == code and error["message"]
            if param:
                assert error["param"] == param
            if isinstance(message, dict):
                assert error["client_event_id"] == "mine"
            closed = await answer(socket, {"type": "session.close"}, "session.closed")
            assert closed["reason"] == "close_requested"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({}, "missing_required_parameter", "session.model"),
        ({"model": "demo", "x": 1}, "unknown_parameter", "session.x"),
        (
            {"model": "demo", "audio": {"format": {"type": "audio/pcm", "rate": 44_100}}},
            "invalid_value",
            "session.audio.format.audio/pcm.rate",
        ),
        (
            {"model": "demo", "delegation": {"type": "responses"}},
            "unsupported_parameter",
            "session.delegation.type",
        ),
        (
            {"model": "demo", "interaction": {"video": True}},
            "unsupported_parameter",
            "session.interaction.video",
        ),
    ],
)
def test_a_session_that_cannot_begin_is_refused(session: Any, code: str, param: str) -> None:
    async def run(address: str, one: House) -> None:
        async with bare(address, started=False) as socket:
            error = (await answer(socket, {"type": "session.start", "session": session}))["error"]
            assert (error["code"], error["param"]) == (code, param)
            with pytest.raises(websockets.ConnectionClosed) as ended:
                await socket.recv()
            assert ended.value.rcvd.code == 1008
        assert one.engine.free == 2

    with house() as (address, one):
        asyncio.run(run(address, one))


def test_a_full_house_and_a_greedy_client_are_refused() -> None:
    async def run(address: str) -> None:
        start = {"type": "session.start", "session": {"model": "demo"}}
        async with bare(address), bare(address, started=False) as second:
            error = (await answer(second, start))["error"]
            assert error["code"] == wanted and error["type"] == "server_error"
            with pytest.raises(websockets.ConnectionClosed) as ended:
                await second.recv()
            assert ended.value.rcvd.code == 1013

    for wanted, rows, most in (("server_full", 1, 9), ("session_limit_reached", 2, 1)):  # noqa: B007
        with house(rows=rows, limits=Limits(sessions_a_client=most)) as (address, _):
            asyncio.run(run(address))


def test_tokens_and_origins() -> None:
    async def status(address: str, **headers: str) -> int:
        try:
            async with bare(address, started=False, additional_headers=headers):
                return 101
        except websockets.InvalidStatus as error:
            return error.response.status_code

    async def run(address: str) -> None:
        right = {"Authorization": "Bearer right"}
        assert await status(address) == 401
        assert await status(address, Authorization="Bearer wrong") == 401
        assert await status(address, Authorization="right") == 401
        assert await status(address, **right) == 101
        assert await status(address, **right, Origin=f"http://{address}") == 101
        assert await status(address, **right, Origin="https://good.example") == 101
        assert await status(address, **right, Origin="https://evil.example") == 403
        browser = ["interaction", "openai-insecure-api-key.right"]
        async with bare(address, started=False, subprotocols=browser) as socket:
            assert socket.subprotocol == "interaction"

    with house(door=Door(["other", "right"], ["https://good.example"])) as (address, _):
        asyncio.run(run(address))


def test_without_tokens_only_this_machine_gets_in() -> None:
    door = Door()
    assert door.check({"host": "localhost:8000"}) == door.check({"host": "[::1]:8000"}) == "local"
    for headers in ({"host": "evil.example"}, {"host": "localhost", "origin": "http://evil"}):
        with pytest.raises(RefusedError, match=r"origin|host"):
            door.check(headers)


def test_frames_are_for_sessions_that_asked_for_video() -> None:
    async def run(address: str, model: EchoModel) -> None:
        size = model.config.frame_size
        data = base64.b64encode(bytes(range(3)) * size * size).decode()
        frame = {"type": "interaction.input_frame.append", "frame": data}
        async with bare(address) as socket:
            assert "session without video" in (await answer(socket, frame))["error"]["message"]
        session = {"model": "demo", "interaction": {"video": True}}
        async with bare(address, started=False) as socket:
            await answer(socket, {"type": "session.start", "session": session}, "session.started")
            await socket.send(json.dumps(frame))
            await asyncio.sleep(0.6)
        (seen,) = model.seen
        assert np.array_equal(seen[0, 0] * 255, [0, 1, 2])

    model = EchoModel()
    with serving(House(Engine(model, 2, frames=True), "demo")) as address:
        asyncio.run(run(address, model))
