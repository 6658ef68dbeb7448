"""Schedules, weight decay, and the config's checks."""

import jax.numpy as jnp
import pytest

from interaction.training.objective import find_objective
from interaction.training.optimizer import decay_mask, learning_rate
from interaction.training.train_config import TrainConfig


def _config(**changes: object) -> TrainConfig:
    base = {"name": "x", "objective": "a:b", "data": "d", "steps": 100, "warmup": 10}
    return TrainConfig(**base | changes)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("cosine", 0.5e-3, 0.0), ("wsd", 1e-3, 0.0), ("constant", 1e-3, 1e-3)],
)
def test_schedule(schedule: str, middle: float, end: float) -> None:
    rate = learning_rate(_config(schedule=schedule, decay_fraction=0.3))
    assert float(rate(0)) == pytest.approx(1e-4)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(55)) == pytest.approx(middle)
    assert float(rate(100)) == pytest.approx(end, abs=1e-9)


def test_wsd_falls_over_its_last_part() -> None:
    rate = learning_rate(_config(schedule="wsd", decay_fraction=0.3))
    assert float(rate(70)) == pytest.approx(1e-3)
    assert float(rate(85)) == pytest.approx(0.5e-3)


def test_only_matrices_decay() -> None:
    params = {"w": jnp.ones((2, 2)), "ffn_norm": jnp.ones((3, 2)), "b": jnp.ones(2)}
    assert decay_mask(params) == {"w": True, "ffn_norm": False, "b": False}


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("learning_rate", 0.0), ("schedule", "step"), ("ema_decay", 1.0)],
)
def test_bad_config_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"train\.{field}: got"):
        _config(**{field: value})


@pytest.mark.parametrize("name", ["nothing", "interaction.no:thing", "interaction.config:thing"])
def test_unknown_objective_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="objective: got"):
        find_objective(name, _config().model)
