"""Unusable chunks through an engine whose model takes sound, video and text."""

import pytest

from interaction.data.tokenizer import load_tokenizer
from interaction.engine.live_model import InteractionModel
from interaction.evaluation import fuzzed_chunks
from tests.support import SMALLEST, random_params


@pytest.fixture(scope="module")
def model() -> InteractionModel:
    config = SMALLEST
    return InteractionModel(config, random_params(config), load_tokenizer())


def test_every_unusable_chunk_is_refused_alone(model: InteractionModel) -> None:
    assert model.config.trained_on_frames and model.config.trained_on_text
    found = fuzzed_chunks.fuzz_chunks(model, 600, seed=3)
    assert found["unclear"] == []
    assert found["clear_errors"] == found["chunks"] == 600
    assert found["turns"] == 30 and found["unchanged"]


def test_what_is_accepted_is_seen(model: InteractionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interaction.engine.session.checked", lambda config, name, value: value)
    found = fuzzed_chunks.fuzz_chunks(model, 40, seed=3)
    assert found["clear_errors"] < 40
    assert any("accepted" in one for one in found["unclear"])
