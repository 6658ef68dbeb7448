"""Moved sessions go on to the bit, and one that does not is counted."""

import pathlib

import numpy as np
import pytest

from interaction.data.tokenizer import load_tokenizer
from interaction.engine.live_model import InteractionModel
from interaction.engine.rows import Rows
from interaction.evaluation import moves
from tests.support import SMALLEST, random_params

CONFIG = SMALLEST
USERS = [(9_000 * np.sin(np.arange(n) / 7)).astype(np.int16) for n in (16_000, 23_000)]


@pytest.fixture(scope="module")
def model() -> InteractionModel:
    return InteractionModel(CONFIG, random_params(CONFIG), load_tokenizer())


def test_sessions_move_in_every_way(model: InteractionModel, tmp_path: pathlib.Path) -> None:
    found = moves.run_moves(model, USERS, USERS, 10, 3, tmp_path, lambda at: moves.go_on(model, at))
    assert found["moves"] == found["continued"] == 8
    assert found["moves_of_size"] == 2
    assert found["by_kind"]["fork"] == [2, 2] and found["by_kind"]["row"] == [2, 2]


def test_a_session_that_goes_on_otherwise_is_counted(
    model: InteractionModel, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(self: Rows, one: object) -> int:
        return self.allocate(99)

    monkeypatch.setattr(Rows, "restore", forgets)
    found = moves.run_moves(model, USERS, USERS, 5, 3, tmp_path, lambda at: moves.go_on(model, at))
    assert found["by_kind"] == {
        **{"row": [0, 1], "process": [0, 1], "fork": [0, 1], "rewind": [1, 1]},
        "size": found["by_kind"]["size"],
    }
