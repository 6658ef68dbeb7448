"""From mouth to ear through the page, on a server whose model repeats its user at once."""

import pathlib
import time

import numpy as np
import pytest

from interaction.data.audio_file import write_audio
from interaction.engine import session_record
from interaction.engine.engine import Engine
from interaction.serve.app import About
from interaction.serve.house import House
from interaction.types import Chunk, Reply
from tests.serve.echo import EchoModel, serving

pytest.importorskip("playwright", reason="needs the browser extra")

from experiments.browser import MOST_S, delays, talk
from experiments.chromium import fake_microphone, open_page

CHROMIUM, RATE = "/usr/bin/chromium", 16_000
pytestmark = pytest.mark.skipif(not pathlib.Path(CHROMIUM).exists(), reason="needs Chromium")


def user() -> np.ndarray:
    """Noise whose level changes like that of speech, five times 1.5 s after 1.5 s of silence."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(5):
        level = np.repeat(rng.uniform(0.05, 0.4, 15), RATE // 10)
        noise = rng.normal(0, 1, len(level)).clip(-2, 2) / 2
        pieces += [np.zeros(3 * RATE // 2), level * np.convolve(noise, np.ones(8) / 4, "same")]
    return np.concatenate(pieces).astype(np.float32)


class StallingModel(EchoModel):
    """The step after 4.8 s, while the user speaks again, takes 0.5 s."""

    def step(self, state: dict, chunk: Chunk) -> tuple[dict, Reply]:
        if np.max(state["clock"]) == 24:
            time.sleep(0.5)
        return super().step(state, chunk)


def test_the_page_adds_little_before_and_after_a_late_micro_turn(tmp_path: pathlib.Path) -> None:
    microphone = tmp_path / "microphone.wav"
    write_audio(microphone, user())
    house = House(Engine(StallingModel(), 2), "demo", folder=tmp_path)
    with (
        serving(house, About("Numbers.", ["one two"])) as address,
        open_page(CHROMIUM, fake_microphone(microphone)) as page,
    ):
        heard = talk(page, address, 17.0, str(tmp_path / "page.png"))
    turns = session_record.read(tmp_path / "records" / f"{heard.session}.session").entries
    took = np.concatenate([turn.audio for turn in turns])
    said = np.concatenate([turn.speech for turn in turns])
    found = delays(heard, took, said)
    assert len(found) >= 4
    assert 0 < found[0] <= MOST_S["mouth_to_ear_p50_s"]
    assert max(found) > 0.5, "no micro-turn was late"
    assert 0 < found[-1] <= MOST_S["mouth_to_ear_p50_s"], "silence is left out after it"
