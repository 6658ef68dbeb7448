"""The Realtime protocol, spoken by OpenAI's own client; each event is checked by its own types."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import openai
import websockets
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from interaction.background.agent import DONE, TEXT
from interaction.background.scripted import Line, ScriptedAgent
from interaction.serve.limits import Limits
from interaction.types import Special
from tests.background.fakes import delegate, words
from tests.serve.clients import RATE, TONE, house
from tests.serve.echo import EchoModel

EVENT = TypeAdapter(RealtimeServerEvent)
FUNCTION = {
    "type": "function",
    "name": "answer",
    "parameters": {
        "type": "object",
        "properties": {"request": {"type": "string"}},
        "required": ["request"],
    },
}


@contextlib.asynccontextmanager
async def connect(address: str, **session: Any) -> AsyncIterator:
    client = openai.AsyncOpenAI(api_key="secret", base_url=f"http://{address}/v1")
    async with client.realtime.connect(model="demo") as live:
        await live.session.update(session={"type": "realtime"} | session)
        yield live


async def until(live: Any, wanted: Callable[[Any], bool] | str, limit_s: float = 10) -> list[Any]:
    """Events up to the first one that is wanted; each is valid."""
    found, test = [], wanted if callable(wanted) else lambda one: one.type == wanted
    async with asyncio.timeout(limit_s):
        while not found or not test(found[-1]):
            told = json.loads(await live.recv_bytes())
            if told["type"] != "info":
                EVENT.validate_python(told, strict=True)
            found.append(live.parse_event(json.dumps(told)))
    return found


async def talk(live: Any, pcm: np.ndarray, piece_s: float = 0.05) -> None:
    """Sends sound in real time."""
    step = round(piece_s * RATE)
    began = asyncio.get_running_loop().time()
    for place in range(0, len(pcm), step):
        data = base64.b64encode(pcm[place : place + step].tobytes()).decode()
        await live.input_audio_buffer.append(audio=data)
        late = began + (place + step) / RATE - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0, late))


def kinds(events: list[Any]) -> list[str]:
    return [one.type for one in events]


def test_a_response_begins_and_ends_with_the_model_s_speech() -> None:
    async def run(address: str) -> None:
        async with connect(address) as live:
            first = await until(live, "session.updated")
            assert kinds(first)[:2] == ["session.created", "conversation.created"]
            assert first[-1].session.audio.input.format.rate == RATE
            await talk(live, np.concatenate([TONE, np.zeros(RATE, "<i2")]))
            events = await until(live, "response.done")
            order = list(dict.fromkeys(kinds(events)))
            assert order == [
                "response.created",
                "response.output_item.added",
                "conversation.item.added",
                "response.content_part.added",
                "response.output_audio.delta",
                "response.output_audio.done",
                "response.output_audio_transcript.done",
                "response.content_part.done",
                "conversation.item.done",
                "response.output_item.done",
                "response.done",
            ]
            done = events[-1].response
            assert done.status == "completed" and done.output[0].role == "assistant"
            parts = [one.delta for one in events if one.type == "response.output_audio.delta"]
            heard = np.frombuffer(b"".join(map(base64.b64decode, parts)), "<i2").astype(float)
            # The tone of a second, and the silence that ended the response.
            assert 1.4 * RATE < len(heard) < 2.2 * RATE
            power = np.abs(np.fft.rfft(heard, RATE * 4)) ** 2
            assert power[4 * 430 : 4 * 450].sum() > 0.97 * power.sum()

    with house() as (address, _):
        asyncio.run(run(address))


def test_words_of_both_sides() -> None:
    model = EchoModel(
        [*[Special.SILENT] * 8, *words("three four")],
        [Special.NONE, Special.NONE, *words("one two")],
    )

    async def run(address: str) -> None:
        audio = {"input": {"transcription": {"model": "any"}}}
        async with connect(address, audio=audio) as live:
            events = await until(live, "response.done")
            names = kinds(events)
            assert names.index("input_audio_buffer.speech_started") < names.index(
                "input_audio_buffer.speech_stopped"
            )
            done = next(one for one in events if one.type.endswith("transcription.completed"))
            assert done.transcript == "one two"
            started = next(one for one in events if one.type.endswith("speech_started"))
            stopped = next(one for one in events if one.type.endswith("speech_stopped"))
            assert started.item_id == stopped.item_id == done.item_id
            assert stopped.audio_end_ms - started.audio_start_ms == 400  # two micro-turns
            said = [one.delta for one in events if one.type.endswith("audio_transcript.delta")]
            assert "".join(said).split() == ["three", "four"]
            content = events[-1].response.output[0].content[0]
            assert content.type == "output_audio" and content.transcript.split() == said_words
            await live.conversation.item.retrieve(item_id=done.item_id)
            item = (await until(live, "conversation.item.retrieved"))[-1].item
            assert item.role == "user" and item.content[0].transcript == "one two"

    said_words = ["three", "four"]
    with house(model) as (address, _):
        asyncio.run(run(address))


def test_text_alone() -> None:
    async def run(address: str) -> None:
        async with connect(address, output_modalities=["text"]) as live:
            events = await until(live, "response.done")
            assert "response.output_audio.delta" not in kinds(events)
            done = next(one for one in events if one.type == "response.output_text.done")
            assert done.text.split() == ["three", "four"]

    with house(EchoModel([Special.SILENT, *words("three four")])) as (address, _):
        asyncio.run(run(address))


def test_a_delegation_is_a_call_of_the_client_s_function() -> None:
    script = [*[Special.SILENT] * 4, *delegate("what time is it")]
    model = EchoModel(script)

    async def run(address: str) -> None:
        async with connect(address, tools=[FUNCTION]) as live:
            events = await until(live, "response.done")
            done = next(one for one in events if one.type.endswith("arguments.done"))
            assert json.loads(done.arguments) == {"request": "what time is it"}
            call = events[-1].response.output[0]
            assert (call.type, call.name, call.call_id) == ("function_call", "answer", done.call_id)
            output = json.dumps({"said": "sorry that did not work"})
            item = {"type": "function_call_output", "call_id": call.call_id, "output": output}
            await live.conversation.item.create(item=item)
            added = (await until(live, "conversation.item.done"))[-1].item
            assert added.type == "function_call_output"
            await live.response.create()
            await until(live, "response.created")
            await live.conversation.item.create(item=item)
            error = (await until(live, "error"))[-1].error
            assert error.code == "invalid_value" and error.param == "item.call_id"
            async with asyncio.timeout(5):
                while "work" not in model.given:
                    await asyncio.sleep(0.05)
            assert model.given.startswith("sorry that did not work")

    with house(model) as (address, _):
        asyncio.run(run(address))


def test_what_the_user_takes_back_is_answered_to_nobody() -> None:
    model = EchoModel([*[Special.SILENT] * 4, *delegate("what time is it"), Special.CANCEL])

    async def run(address: str) -> None:
        async with connect(address, tools=[FUNCTION]) as live:
            call = (await until(live, "response.done"))[-1].response.output[0]
            await asyncio.sleep(0.5)
            item = {"type": "function_call_output", "call_id": call.call_id, "output": "CANCELLED"}
            await live.conversation.item.create(item=item)
            events = await until(live, "conversation.item.done")
            assert "error" not in kinds(events)
            await asyncio.sleep(0.5)
            assert "cancelled" not in model.given.lower()

    with house(model) as (address, _):
        asyncio.run(run(address))


def test_without_a_function_the_server_answers() -> None:
    told: list[str] = []

    def make_agent(instructions: str) -> ScriptedAgent:
        told.append(instructions)
        return ScriptedAgent(lambda _: [Line(0, TEXT, "sorry that did not work"), Line(0, DONE)])

    model = EchoModel([*[Special.SILENT] * 4, *delegate("what time is it")])

    async def run(address: str) -> None:
        async with connect(address, instructions="be kind"):
            async with asyncio.timeout(8):
                while "work" not in model.given:
                    await asyncio.sleep(0.05)
        assert told == ["be kind"]

    with house(model, make_agent=make_agent) as (address, _):
        asyncio.run(run(address))


def test_a_response_that_the_client_cancels() -> None:
    async def run(address: str) -> None:
        async with connect(address) as live:
            talking = asyncio.create_task(talk(live, np.concatenate([TONE, TONE])))
            await until(live, "response.output_audio.delta")
            await live.response.cancel()
            done = (await until(live, "response.done"))[-1].response
            assert done.status == "cancelled" and done.status_details.reason == "client_cancelled"
            await talking
            await talk(live, np.zeros(RATE, "<i2"))
            await live.response.cancel()
            rest = await until(live, "error")
            # What the model went on to say is not sent.
            assert kinds(rest)[-1] == "error" and "response.created" not in kinds(rest)
            assert rest[-1].error.code == "response_cancel_not_active"
            await asyncio.gather(talk(live, TONE), until(live, "response.created"))

    with house() as (address, _):
        asyncio.run(run(address))


def test_a_client_that_leaves_frees_its_place() -> None:
    async def run(address: str, one: Any) -> None:
        for ended in range(1, 4):
            async with connect(address) as live:
                await until(live, "session.updated")
                assert len(one.engine.sessions) == 1
            # The row is free a moment before the end is counted.
            told = f'reason="close_requested"}} {ended}.0'
            async with asyncio.timeout(5):
                while one.engine.sessions or told not in one.metrics.text().decode():
                    await asyncio.sleep(0.05)

    with house(rows=1) as (address, one):
        asyncio.run(run(address, one))


def test_a_full_house_and_the_end_of_a_session_are_told() -> None:
    async def run(address: str) -> None:
        async with connect(address) as live:
            await until(live, "session.updated")
            async with websockets.connect(f"ws://{address}/v1/realtime") as second:
                told = json.loads(await second.recv())
                assert told["error"]["code"] == "server_full"
            error = (await until(live, "error"))[-1].error
            assert error.code == "session_expired" and error.type == "server_error"

    with house(rows=1, limits=Limits(session_s=2.0)) as (address, _):
        asyncio.run(run(address))
