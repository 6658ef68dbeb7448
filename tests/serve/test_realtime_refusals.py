"""What the Realtime protocol refuses, and that nothing else changes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from interaction.serve.limits import Door
from tests.serve.clients import answer, bare as live, house
from tests.serve.test_realtime import FUNCTION


@contextlib.asynccontextmanager
async def bare(address: str) -> AsyncIterator:
    async with websockets.connect(f"ws://{address}/v1/realtime?model=demo") as socket:
        first = json.loads(await socket.recv())
        assert first["type"] == "session.created" and first["session"]["model"] == "demo"
        yield socket


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime"} | session}


def create(**item: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": item}


INFINITE = '{"type": "session.update", "session": {"type": "realtime", "prompt": 1e999}}'
TEXT = [{"type": "input_text", "text": "hello"}]
WEATHER = {"type": "function", "name": "weather", "parameters": {"properties": {"place": {}}}}


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ({"type": "session.start"}, "unknown_event", "type"),
        ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
        (update(type="transcription"), "invalid_value", "session.type"),
        (update(colour=1), "unknown_parameter", "session.colour"),
        (update(output_modalities=["text", "audio"]), "invalid_value", "session.output_modalities"),
        (update(tools=[WEATHER]), "unsupported_parameter", "session.tools"),
        (update(tools=[FUNCTION, FUNCTION]), "unsupported_parameter", "session.tools"),
        (update(tools=[{"type": "mcp"}]), "unsupported_parameter", "session.tools"),
        ({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AA=="}, "invalid_value", None),
        (INFINITE, "invalid_json", None),
        (update(prompt=json.loads("[" * 40 + "]" * 40)), "invalid_json", None),
        (update(prompt="x" * 300_000), "invalid_value", "session"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
        ({"type": "response.cancel"}, "response_cancel_not_active", None),
        (
            {"type": "response.create", "response": {"conversation": "none"}},
            "unsupported_parameter",
            "response.conversation",
        ),
        (
            {"type": "conversation.item.retrieve", "item_id": "a"},
            "item_retrieve_invalid_item_id",
            "item_id",
        ),
        (
            {
                "type": "conversation.item.truncate",
                "item_id": "a",
                "content_index": 0,
                "audio_end_ms": 5,
            },
            "item_truncate_invalid_item_id",
            "item_id",
        ),
        (
            create(type="function_call_output", call_id="a", output="b"),
            "invalid_value",
            "item.call_id",
        ),
        (
            create(type="message", role="user", content=[{"type": "input_image"}]),
            "unsupported_content",
            "item.content",
        ),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_message_is_refused_alone(
    address: str, message: Any, code: str, param: str | None, first: bool
) -> None:
    if isinstance(message, dict):
        message = message | {"event_id": "mine"}

    async def run() -> None:
        async with bare(address) as socket:
            if not first:
                await answer(socket, update(), "session.updated")
            error = (await answer(socket, message))["error"]
            assert error["code"] == code and error["message"]
            assert error["param"] == param or param is None
            assert error["event_id"] == ("mine" if isinstance(message, dict) else None)
            told = await answer(socket, update(instructions="x"), "session.updated")
            assert told["session"]["instructions"] == "x" and not told["session"]["tools"]

    asyncio.run(run())


def test_text_is_told_not_to_be_read_and_the_format_stays() -> None:
    async def run(address: str) -> None:
        async with bare(address) as socket:
            await answer(socket, update(), "session.updated")
            item = create(type="message", role="user", content=TEXT)
            told = await answer(socket, item, "info")
            assert told["code"] == "input_not_read"
            sound = {"type": "input_audio_buffer.append", "audio": ""}
            await socket.send(json.dumps(sound))
            assert (await answer(socket, item, "info"))["code"] == "input_not_read"
            twice = create(type="message", role="user", content=TEXT, id="one")
            await answer(socket, twice, "conversation.item.done")
            error = (await answer(socket, twice))["error"]
            assert error["code"] == "item_create_duplicate_item_id"
            await answer(
                socket,
                {"type": "conversation.item.delete", "item_id": "one"},
                "conversation.item.deleted",
            )
            other = update(audio={"input": {"format": {"type": "audio/pcmu"}}})
            assert (await answer(socket, other))["error"]["code"] == "immutable_parameter"

    with house() as (address, _):
        asyncio.run(run(address))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer right", "origin": "https://example.org"}, 403),
    ],
)
def test_who_does_not_get_in(headers: dict[str, str], status: int) -> None:
    async def run(address: str) -> None:
        url = f"ws://{address}/v1/realtime"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers=headers)
        assert refused.value.response.status_code == status
        good = {"authorization": "Bearer right"}
        async with websockets.connect(url, additional_headers=good) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"

    with house(door=Door(["right"])) as (address, _):
        asyncio.run(run(address))


def test_the_live_protocol_cannot_go_on_with_its_sessions() -> None:
    async def run(address: str, one: Any) -> None:
        async with bare(address) as socket:
            told = await answer(socket, update(), "session.updated")
            path = f"/{told['session']['id']}/fork"
            async with live(address, started=False, path=path) as other:
                error = await answer(other, {"type": "session.start", "session": {}})
                assert error["error"]["code"] == "session_not_found"
            assert len(one.engine.sessions) == 1

    with house() as (address, one):
        asyncio.run(run(address, one))
