"""The released pair on the bundled recording, against what it said when it was released.

Tokens are equal with AVX-512, AVX2 and SSE4.2 instructions. The PCM of the latter two differs from
the golden, which is 16 bit PCM, by 7e-5 and 1.4e-3 of its norm.
"""

import json

import numpy as np
import pytest

from interaction.background import MicroTurn
from interaction.data.audio_file import read_audio
from tests import released


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(released.TOKENS.read_text())


@pytest.fixture(scope="module")
def live() -> tuple[dict, np.ndarray, list[MicroTurn]]:
    return released.run_live()


@pytest.mark.parametrize("stream", ["text", "user_transcript", "delegations"])
def test_what_the_live_model_writes(
    golden: dict, live: tuple[dict, np.ndarray, list[MicroTurn]], stream: str
) -> None:
    assert live[0][stream] == golden[stream]


def test_what_the_live_model_says(live: tuple[dict, np.ndarray, list[MicroTurn]]) -> None:
    spoken, wanted = live[1], read_audio(released.SPEECH)
    assert spoken.shape == wanted.shape
    assert np.linalg.norm(spoken - wanted) < 0.02 * np.linalg.norm(wanted)


def test_what_the_background_model_writes(
    golden: dict, live: tuple[dict, np.ndarray, list[MicroTurn]]
) -> None:
    assert released.run_reasoner(live[2]) == golden["reasoner"]
