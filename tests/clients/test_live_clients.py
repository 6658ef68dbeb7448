"""Real clients of the Live protocol hold the bundled conversation with the released pair.

They need the `clients` extra and a minute each: `make clients`. Each is a package as its makers
ship it; only its base URL is another.
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET

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

from experiments.serve_client import Server  # noqa: E402

USER = np.round(read_audio(ASSET) * 32_767).astype("<i2")
RATE, PIECE = 16_000, 640
BASE = "http://{}/v1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    annotation = ASSET.with_suffix(".json")
    server = Server(2, tmp_path_factory.mktemp("house"), more=f"--annotation={annotation}")
    yield server.address
    server.end()


def check(said: str) -> None:
    """What the model has to say to the bundled user, and what it may not."""
    words = " ".join(said.split())
    assert "tokyo" in words and "purple tiger window" in words
    assert "eight seconds are over" in words, "the timer's delegation"
    assert "okay it is fifty eight dollars" in words, "the corrected delegation"
    rest = words.partition("fifty eight dollars")[2]
    assert "five" in rest and "cold lake" not in rest, "the interruption ends the story"
    assert "fifty six" not in words, "the cancelled delegation"
    assert words.endswith("goodbye")


async def pieces() -> AsyncIterator[bytes]:
    """The user's PCM in real time, and two seconds of silence."""
    pcm, began = np.concatenate([USER, np.zeros(2 * RATE, "<i2")]), time.monotonic()
    for place in range(0, len(pcm), PIECE):
        yield pcm[place : place + PIECE].tobytes()
        await asyncio.sleep(max(0.0, began + (place + PIECE) / RATE - time.monotonic()))


def test_openai(address: str) -> None:
    async def run() -> str:
        client, said = AsyncOpenAI(api_key="any", base_url=BASE.format(address)), ""
        async with client.live.connect() as live:
            audio = {"format": {"type": "audio/pcm", "rate": RATE}}
            responses = {"type": "responses", "responses": {"model": "any"}}
            session = {"model": "gpt-live-1", "audio": audio, "delegation": responses}
            await live.session.start(session=session)

            async def talk() -> None:
                async for data in pieces():
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
        pcm = np.concatenate([USER, np.zeros(2 * RATE, "<i2")])
        for place in range(0, len(pcm), PIECE):
            data = pcm[place : place + PIECE].tobytes()
            yield InputAudioRawFrame(audio=data, sample_rate=RATE, num_channels=1)
            yield SleepFrame(sleep=max(0.0, began + (place + PIECE) / RATE - time.monotonic()))


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
        async for data in pieces():
            session.push_audio(rtc.AudioFrame(data, RATE, 1, len(data) // 2))
        await session.aclose()
        with contextlib.suppress(asyncio.TimeoutError):
            assert await asyncio.wait_for(listening, 5) > 20
        await model.aclose()
        assert "error" not in kinds, json.dumps(kinds)
        return "".join(said)

    check(asyncio.run(run()))
