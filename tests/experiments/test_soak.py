"""Short forms of the soak: its figures are complete, and a wrong engine is seen."""

import pathlib

import numpy as np
import pytest

from interaction.data.tokenizer import load_tokenizer
from interaction.engine.live_model import InteractionModel
from interaction.engine.rows import Rows
from interaction.evaluation import endurance
from tests.support import SMALLEST, random_params

CONFIG = SMALLEST
USERS = [(9_000 * np.sin(np.arange(n) / 7)).astype(np.int16) for n in (16_000, 23_000)]


@pytest.fixture(scope="module")
def model() -> InteractionModel:
    return InteractionModel(CONFIG, random_params(CONFIG), load_tokenizer())


def test_sessions_of_a_load_equal_themselves_alone(model: InteractionModel) -> None:
    figures = endurance.run_load(model, USERS, 2, 4.0, lambda number: None, checked=3)
    assert figures["sessions"] == 2 and figures["opened"] >= 4 and figures["turns"] >= 15
    assert figures["equal_alone"] == figures["tokens_equal_of_one"] == figures["checked"] == 3


def test_a_session_that_differs_alone_is_counted(
    model: InteractionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = Rows.allocate
    monkeypatch.setattr(Rows, "allocate", lambda self, seed: allocate(self, seed + self.count - 2))
    figures = endurance.run_load(model, USERS, 2, 2.0, lambda number: None, checked=2)
    assert figures["equal_alone"] == 2 and figures["tokens_equal_of_one"] < 2


def test_an_hour_in_small(model: InteractionModel, tmp_path: pathlib.Path) -> None:
    figures = endurance.run_hours(model, USERS, 0.02, tmp_path)
    assert figures["turns"] == 360 and figures["complete"] and figures["replay_equal"]
    assert 0.5 < figures["tail_over_head"] < 2 and figures["memory_growth_mb"] < 100
