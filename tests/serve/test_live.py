"""The Live protocol, spoken by OpenAI's own client."""

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from interaction.background.agent import CALL, DONE, RESULT, TEXT
from interaction.background.scripted import Line, ScriptedAgent
from interaction.types import Special
from tests.background.fakes import delegate, words
from tests.serve.clients import RATE, TONE, connect, house, inner, sound, talk, until
from tests.serve.echo import EchoModel


def test_the_official_client_hears_what_the_model_says() -> None:
    async def run(address: str) -> None:
        async with connect(address) as live:
            started = (await until(live, "session.started"))[-1]
            assert started.session.id.startswith("session_") and started.session.model == "demo"
            assert started.session.audio.format.rate == RATE
            assert started.session.delegation.type == "client"
            await talk(live, np.concatenate([TONE, np.zeros(RATE // 2, "<i2")]))
            await live.session.close()
            events = await until(live, "session.closed")
            assert events[-1].reason == "close_requested"
            heard = sound(events)
            assert 1.2 * RATE < len(heard) < 2.2 * RATE
            # Its spectrum is that of the tone at half its level.
            power = np.abs(np.fft.rfft(heard, RATE * 4)) ** 2
            near = slice(4 * 430, 4 * 450)
            assert power[near].sum() > 0.97 * power.sum()
            loud = heard[np.abs(heard) > 50]
            assert abs(np.abs(loud).max() / 4_000 - 1) < 0.05
            texts = [one for one in events if one.type == "session.output_transcript.delta"]
            assert "".join(one.delta for one in texts).strip() == "one two"
            assert all(one.end_ms - one.start_ms == 200 for one in texts)
            # The clock counts the speech that was sent before the words.
            for one in texts:
                before = [e.type for e in events[: events.index(one)]]
                sent = before.count("session.output_audio.delta")
                assert one.end_ms == 200 * sent

    script = [Special.SILENT, *words("one two")]
    with house(EchoModel(script)) as (address, _):
        asyncio.run(run(address))


def test_a_delegation_is_answered_by_the_client() -> None:
    model = EchoModel([Special.SILENT] * 3 + delegate("what time is it"))

    async def run(address: str) -> None:
        async with connect(address) as live:
            events = await until(live, "session.delegation.created")
            asked = events[-1]
            assert asked.delegation.target == "client" and asked.offset_ms % 200 == 0
            name = asked.delegation.id
            words = (await until(live, "info"))[-1]
            assert (
                words.code == "delegation_request" and words.message == f"{name}: what time is it"
            )
            await live.session.thinking.append(content="looking", delegation_id=name)
            await until(live, "session.thinking.appended")
            words_ = {"content": "sorry that did not work", "delegation_id": name}
            await live.session.commentary.append(**words_)
            await until(live, "session.commentary.appended")
            await live.session.commentary.append(**words_)
            error = (await until(live, "error"))[-1].error
            assert error.code == "delegation_not_found" and name in error.message
            async with asyncio.timeout(5):
                while "work" not in model.given:
                    await live.recv()
            assert model.given.startswith("sorry that did not work")

    with house(model) as (address, _):
        asyncio.run(run(address))


def test_words_that_the_model_cannot_say_are_told_as_a_failure() -> None:
    model = EchoModel(delegate("what time is it"))

    async def run(address: str) -> None:
        async with connect(address) as live:
            name = (await until(live, "session.delegation.created"))[-1].delegation.id
            await live.session.commentary.append(
                content="the quarterly zyxwv is up", delegation_id=name
            )
            told = await until(live, lambda one: getattr(one, "code", "") == "delegation_failed")
            assert "not trained to say" in told[-1].message

    with house(model) as (address, _):
        asyncio.run(run(address))


def test_a_cancelled_delegation_is_told_and_its_words_are_refused() -> None:
    model = EchoModel([*delegate("what time is it"), *[Special.SILENT] * 5, Special.CANCEL])

    async def run(address: str) -> None:
        async with connect(address) as live:
            name = (await until(live, "session.delegation.created"))[-1].delegation.id
            told = await until(live, lambda one: getattr(one, "code", "") == "delegation_cancelled")
            assert told[-1].message == name
            await live.session.commentary.append(content="one", delegation_id=name)
            assert (await until(live, "error"))[-1].error.code == "delegation_not_found"

    with house(model) as (address, _):
        asyncio.run(run(address))


def test_the_server_answers_delegations_that_are_left_to_it() -> None:
    lines = [
        Line(1, CALL, '{"tool": "clock"}'),
        Line(1, RESULT, '"2:30"'),
        Line(0, TEXT, "sorry that did not work"),
        Line(0, DONE),
    ]
    asked: list[str] = []

    def make_agent(instructions: str) -> ScriptedAgent:
        asked.append(instructions)
        return ScriptedAgent(lambda _: lines)

    async def run(address: str) -> None:
        delegation = {"type": "responses", "responses": {"model": "any", "instructions": "be kind"}}
        async with connect(address, {"delegation": delegation}) as live:
            found = await until(
                live,
                lambda one: one.type == "response.event" and inner(one) == "response.completed",
            )
            created = next(one for one in found if one.type == "session.delegation.created")
            assert created.delegation.target == "responses"
            kinds = [inner(one) for one in found if one.type == "response.event"]
            assert kinds == [
                "response.created",
                "response.output_item.added",
                "response.output_item.done",
                "response.completed",
            ]
            assert asked == ["be kind"]

    with house(EchoModel(delegate("what time is it")), make_agent=make_agent) as (address, _):
        asyncio.run(run(address))


def test_a_muted_user_is_not_heard() -> None:
    async def run(address: str) -> None:
        async with connect(address) as live:
            await until(live, "session.started")
            await live.session.input_audio.mute(event_id="m")
            muted = (await until(live, "session.input_audio.muted"))[-1]
            assert muted.client_event_id == "m"
            await talk(live, TONE)
            await live.session.input_audio.unmute()
            events = await until(live, "session.input_audio.unmuted")
            assert not np.any(sound(events))
            await talk(live, TONE)
            await live.session.close()
            assert np.any(sound(await until(live, "session.closed")))

    with house() as (address, _):
        asyncio.run(run(address))


@pytest.mark.parametrize(
    ("form", "rate", "width"),
    [
        ({"type": "audio/pcm", "rate": 16_000}, 16_000, 2),
        ({"type": "audio/pcmu", "rate": 8_000}, 8_000, 1),
        ({"type": "audio/pcma", "rate": 8_000}, 8_000, 1),
    ],
)
def test_other_formats_in_both_directions(form: dict[str, Any], rate: int, width: int) -> None:
    import audioop  # of Python up to 3.12: an independent G.711

    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype("<i2").tobytes()
    laws = {"audio/pcmu": (audioop.lin2ulaw, audioop.ulaw2lin)}
    laws["audio/pcma"] = (audioop.lin2alaw, audioop.alaw2lin)
    encode, decode = laws.get(form["type"], (lambda data, _: data, lambda data, _: data))

    async def run(address: str) -> None:
        async with connect(address, {"audio": {"format": form}}) as live:
            await until(live, "session.started")
            data = encode(tone, 2)
            for place in range(0, len(data), rate * width // 5):
                piece = data[place : place + rate * width // 5]
                await live.session.input_audio.append(audio=base64.b64encode(piece).decode())
                await asyncio.sleep(0.2)
            await live.session.close()
            events = await until(live, "session.closed")
            parts = [one.delta for one in events if one.type == "session.output_audio.delta"]
            heard = np.frombuffer(decode(b"".join(map(base64.b64decode, parts)), 2), "<i2")
            power = np.abs(np.fft.rfft(heard.astype(np.float64), rate * 4)) ** 2
            assert power[4 * 430 : 4 * 450].sum() > 0.95 * power.sum() > 0

    with house() as (address, _):
        asyncio.run(run(address))


def test_what_has_no_effect_here_is_told_and_not_refused() -> None:
    async def run(address: str) -> None:
        session = {
            "model": "gpt-live-1",
            "audio": {"output": {"voice": "marin"}},
            "instructions": "be brief",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        }
        async with connect(address, session) as live:
            events = await until(live, lambda one: getattr(one, "code", "") == "input_not_read")
            codes = [one.code for one in events if one.type == "info"]
            assert codes[:3] == ["model_substituted", "voice_substituted", "instructions_not_read"]

    with house() as (address, _):
        asyncio.run(run(address))
