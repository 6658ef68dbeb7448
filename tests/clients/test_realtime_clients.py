"""Real clients of the Realtime protocol hold the bundled conversation with the released pair.

They need the `clients` extra and a minute each: `make clients`. Each answers what the model
delegates by a function of its own, as an app would.
"""

import asyncio
import base64
import json

import numpy as np
import pytest

pipecat = pytest.importorskip("pipecat", reason="needs the clients extra")

from openai import AsyncOpenAI  # noqa: E402
from pipecat.frames.frames import (  # noqa: E402
    ErrorFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.services.llm_service import FunctionCallParams  # noqa: E402
from pipecat.services.openai.realtime.events import (  # noqa: E402
    AudioConfiguration,
    AudioInput,
    InputAudioTranscription,
    SessionProperties,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService  # noqa: E402
from pipecat.tests.utils import run_test  # noqa: E402

from tests.clients.bundled import FUNCTION, answer, check, pieces_in_time  # noqa: E402
from tests.clients.test_live_clients import Script  # noqa: E402


def to_24_khz(pcm: bytes) -> bytes:
    """Three samples for two, on straight lines between them."""
    old = np.frombuffer(pcm, "<i2")
    places = np.arange(len(old) * 3 // 2) * 2 / 3
    return np.interp(places, np.arange(len(old)), old).astype("<i2").tobytes()


def test_openai(address: str) -> None:
    said: list[str] = []
    statuses: list[str] = []

    async def run() -> None:
        client = AsyncOpenAI(api_key="any", base_url=f"http://{address}/v1")
        async with client.realtime.connect(model="gpt-realtime-2.1") as live:
            await live.session.update(session={"type": "realtime", "tools": [FUNCTION]})

            async def talk() -> None:
                async for data in pieces_in_time():
                    audio = base64.b64encode(to_24_khz(data)).decode()
                    await live.input_audio_buffer.append(audio=audio)

            async def call(name: str, arguments: str) -> None:
                output = await answer(json.loads(arguments)["request"])
                item = {"type": "function_call_output", "call_id": name, "output": output}
                await live.conversation.item.create(item=item)
                await live.response.create()

            async def listen() -> None:
                calls = set()
                async for event in live:
                    if event.type == "response.output_audio_transcript.done":
                        said.append(event.transcript)
                    elif event.type == "response.function_call_arguments.done":
                        calls.add(asyncio.create_task(call(event.call_id, event.arguments)))
                    elif event.type == "response.done":
                        statuses.append(event.response.status)
                    elif event.type == "error":
                        # Apps ask for a response whether or not the model speaks already.
                        assert event.error.code == "conversation_already_has_active_response"

            listening = asyncio.create_task(listen())
            await talk()
            await asyncio.sleep(1)
            listening.cancel()

    asyncio.run(run())
    check(" ".join(said))
    assert "cancelled" in statuses, "the interruption ends a response"
    assert statuses.count("completed") >= 8


def test_pipecat(address: str) -> None:
    transcription = InputAudioTranscription()
    properties = SessionProperties(
        tools=[FUNCTION],
        instructions="be brief",
        audio=AudioConfiguration(input=AudioInput(transcription=transcription)),
    )

    async def run() -> tuple[list, list]:
        service = OpenAIRealtimeLLMService(
            api_key="any",
            base_url=f"ws://{address}/v1/realtime",
            settings=OpenAIRealtimeLLMService.Settings(session_properties=properties),
        )

        async def call(params: FunctionCallParams) -> None:
            await params.result_callback(await answer(params.arguments["request"]))

        service.register_function("answer", call, cancel_on_interruption=False)
        return await run_test(service, frames_to_send=Script(), start_timeout=10.0)

    down, up = asyncio.run(run())
    assert not [one for one in up if isinstance(one, ErrorFrame)]
    check("".join(one.text for one in down if isinstance(one, TTSTextFrame)))
    heard = " ".join(one.text for one in up if isinstance(one, TranscriptionFrame))
    assert "repeat after me" in heard and "never mind" in heard
    assert sum(len(one.audio) for one in down if isinstance(one, TTSAudioRawFrame)) > 48_000 * 10
