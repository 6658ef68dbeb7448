"""From mouth to ear through the page, on a server whose model repeats its user at once."""

import pathlib

import numpy as np
import pytest

from interaction.data.audio_file import write_audio
from interaction.engine import session_record
from interaction.engine.engine import Engine
from interaction.serve.app import About
from interaction.serve.house import House
from tests.serve.echo import EchoModel, serving

pytest.importorskip("playwright", reason="needs the browser extra")

from experiments.browser import MOST_S, delays, talk
from experiments.chromium import fake_microphone, open_page

CHROMIUM, RATE = "/usr/bin/chromium", 16_000
pytestmark = pytest.mark.skipif(not pathlib.Path(CHROMIUM).exists(), reason="needs Chromium")


def user() -> np.ndarray:
    """Five seconds of noise whose level changes like that of speech, each after a second."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(5):
        level = np.repeat(rng.uniform(0.05, 0.4, 20), RATE // 10)
        noise = rng.normal(0, 1, len(level)).clip(-2, 2) / 2
        pieces += [np.zeros(RATE), level * np.convolve(noise, np.ones(8) / 4, "same")]
    return np.concatenate(pieces).astype(np.float32)


def test_the_page_adds_little_to_the_time_of_the_model(tmp_path: pathlib.Path) -> None:
    microphone = tmp_path / "microphone.wav"
    write_audio(microphone, user())
    house = House(Engine(EchoModel(), 2), "demo", folder=tmp_path)
    with (
        serving(house, About("Numbers.", ["one two"])) as address,
        open_page(CHROMIUM, fake_microphone(microphone)) as page,
    ):
        heard = talk(page, address, 14.0, str(tmp_path / "page.png"))
    turns = session_record.read(tmp_path / "records" / f"{heard.session}.session").entries
    took, said = (
        np.concatenate([getattr(turn, name) for turn in turns]) for name in ("audio", "speech")
    )
    found = delays(heard, took, said)
    assert len(found) >= 3
    assert 0 < np.percentile(found, 50) <= MOST_S["mouth_to_ear_p50_s"]
    assert np.percentile(found, 90) <= MOST_S["mouth_to_ear_p90_s"]
