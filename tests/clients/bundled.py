"""The bundled conversation: what its user says, when, and what the model has to answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET

USER = np.round(read_audio(ASSET) * 32_767).astype("<i2")
RATE, PIECE = 16_000, 640


def pieces() -> Iterator[tuple[float, bytes]]:
    """The user's PCM and two seconds of silence, each piece with its end, s."""
    pcm = np.concatenate([USER, np.zeros(2 * RATE, "<i2")])
    for place in range(0, len(pcm), PIECE):
        yield (place + PIECE) / RATE, pcm[place : place + PIECE].tobytes()


async def pieces_in_time() -> AsyncIterator[bytes]:
    """The user's PCM in real time."""
    began = time.monotonic()
    for end_s, data in pieces():
        yield data
        await asyncio.sleep(max(0.0, began + end_s - time.monotonic()))


def check(said: str) -> None:
    """What the model has to say to the bundled user, and what it may not."""
    words = " ".join(said.split())
    assert "tokyo" in words and "purple tiger window" in words
    assert "eight seconds are over" in words, "the timer's delegation"
    assert "it is fifty eight dollars" in words, "the corrected delegation"
    rest = words.partition("fifty eight dollars")[2]
    assert "five" in rest and "cold lake" not in rest, "the interruption ends the story"
    assert "fifty six" not in words, "the cancelled delegation"
    assert words.endswith("goodbye")


FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "answer",
    "description": "Answers a request in words.",
    "parameters": {
        "type": "object",
        "properties": {"request": {"type": "string"}},
        "required": ["request"],
    },
}


async def answer(request: str) -> str:
    """What the function of an app answers to the bundled user, after some time."""
    answers = {
        "seconds": (8.0, "eight seconds are over"),
        "pepper": (4.0, "it is fifty eight dollars"),
        "butter": (4.0, "it is nineteen dollars"),
        "times": (6.0, "it is fifty six"),
    }
    wait_s, words = next(found for name, found in answers.items() if name in request)
    await asyncio.sleep(wait_s)
    return words
