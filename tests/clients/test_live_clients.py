"""Real clients of the Live protocol hold the bundled conversation with the released pair.

They need the `clients` extra and a minute each: `make clients`. Each is a package as its makers
ship it; only its base URL is another.
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest

pipecat = pytest.importorskip("pipecat", reason="needs the clients extra")
rtc = pytest.importorskip("livekit.rtc", reason="needs the clients extra")

from livekit.plugins.openai.realtime import GPTLiveModel  # noqa: E402
from openai import AsyncOpenAI  # noqa: E402
from pipecat.frames.frames import (  # noqa: E402
    Frame,
    InputAudioRawFrame,
    LLMContextFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext  # noqa: E402
from pipecat.services.openai.live.llm import OpenAILiveLLMService  # noqa: E402
from pipecat.services.openai.responses.llm import OpenAIResponsesLLMService  # noqa: E402
from pipecat.tests.utils import SleepFrame, run_test  # noqa: E402

from tests.clients.bundled import RATE, check, pieces, pieces_in_time  # noqa: E402

BASE = "http://{}/v1"


def test_openai(address: str) -> None:
    async def run() -> str:
        client, said = AsyncOpenAI(api_key="any", base_url=BASE.format(address)), ""
        async with client.live.connect() as live:
            audio = {"format": {"type": "audio/pcm", "rate": RATE}}
            responses = {"type": "responses", "responses": {"model": "any"}}
            session = {"model": "gpt-live-1", "audio": audio, "delegation": responses}
            await live.session.start(session=session)

            async def talk() -> None:
                async for data in pieces_in_time():
                    await live.session.input_audio.append(audio=base64.b64encode(data).decode())
                await live.session.close()

            talking = asyncio.create_task(talk())
            async for event in live:
                if event.type == "session.output_transcript.delta":
                    said += event.delta
                if event.type == "session.closed":
                    break
            await talking
        return said

    check(asyncio.run(run()))


class Script:
    """Frames for Pipecat, each when it is due."""

    def __iter__(self) -> Iterator[Frame]:
        yield LLMContextFrame(context=LLMContext())
        yield SleepFrame(sleep=1.0)
        began = time.monotonic()
        for end_s, data in pieces():
            yield InputAudioRawFrame(audio=data, sample_rate=RATE, num_channels=1)
            yield SleepFrame(sleep=max(0.0, began + end_s - time.monotonic()))


def test_pipecat(address: str) -> None:
    settings = OpenAIResponsesLLMService.Settings(model="any")
    delegation = OpenAILiveLLMService.ResponsesDelegation(settings=settings)

    async def run() -> tuple[str, str]:
        url = f"ws://{address}/v1/live/sessions"
        service = OpenAILiveLLMService(api_key="any", base_url=url, delegation=delegation)
        down, up = await run_test(service, frames_to_send=Script(), start_timeout=10.0)
        heard = [one.text for one in up if isinstance(one, TranscriptionFrame)]
        said = [one.text for one in down if isinstance(one, TTSTextFrame)]
        return "".join(said), " ".join(heard)

    said, heard = asyncio.run(run())
    check(said)
    assert "repeat after me" in heard and "never mind" in heard


def test_livekit(address: str) -> None:
    async def run() -> str:
        model = GPTLiveModel(api_key="any", base_url=BASE.format(address))
        session, said, kinds = model.session(), [], []

        def take(event: dict) -> None:
            kinds.append(event["type"])
            if event["type"] == "session.output_transcript.delta":
                said.append(event["delta"])

        session.on("openai_server_event_received", take)
        await session._update_session(instructions="be brief")

        async def listen() -> int:
            heard = 0
            async for frame in session.audio_stream:
                heard += bool(np.any(np.frombuffer(frame.frame.data, "<i2")))
            return heard

        listening = asyncio.create_task(listen())
        while "session.started" not in kinds:
            await asyncio.sleep(0.05)
        async for data in pieces_in_time():
            session.push_audio(rtc.AudioFrame(data, RATE, 1, len(data) // 2))
        await session.aclose()
        with contextlib.suppress(asyncio.TimeoutError):
            assert await asyncio.wait_for(listening, 5) > 20
        await model.aclose()
        assert "error" not in kinds, json.dumps(kinds)
        return "".join(said)

    check(asyncio.run(run()))
