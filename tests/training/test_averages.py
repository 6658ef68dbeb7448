"""Averaged parameters: their closed form, and that an export ships them."""

import pathlib

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file

from experiments import export
from interaction.distributed.sharding import make_mesh
from interaction.pretrained.tree_paths import flatten
from interaction.training import state as train_state
from interaction.training.checkpoints import Checkpoints
from interaction.training.loop import keep_config
from interaction.training.optimizer import make_optimizer
from interaction.training.state import TrainState
from interaction.training.train_config import TrainConfig
from tests.support import SMALLEST, random_params
from tests.training import toy

CONFIG = SMALLEST


def test_averages_equal_their_closed_form() -> None:
    """After n steps: a sum of the start and of what each step left, by hand in float64."""
    config = TrainConfig(
        name="x", objective="a:b", data="d", batch=2, learning_rate=0.05, warmup=0, ema_decay=0.33
    )
    task, mesh, optimizer = toy.objective(CONFIG), make_mesh({}), make_optimizer(config)
    step = train_state.make_train_step(task, optimizer, config, mesh)
    state = train_state.init_state(task, optimizer, jax.random.key(0))
    where = train_state.abstract_state(task, optimizer, mesh)
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, where)
    history = [flatten(jax.device_get(state.params))]
    assert all(np.array_equal(a, b) for a, b in _pairs(state.ema, state.params))
    rng = np.random.default_rng(0)
    for _ in range(6):
        batch = {"user": rng.integers(-9_000, 9_000, (2, 160)).astype(np.int16)}
        state, _ = step(state, batch, jax.random.key(1))
        history.append(flatten(jax.device_get(state.params)))
    # Decays 1/10, 2/11, 3/12, 4/13, and then the config's: 5/14 and 6/15 are above it.
    decays = [1 / 10, 2 / 11, 3 / 12, 4 / 13, 0.33, 0.33]
    weights = [
        (1 - before) * np.prod(decays[n:])
        for n, before in enumerate([0.0, *decays])  # the start, then what each step left
    ]
    assert abs(sum(weights) - 1) < 1e-12
    for name, got in flatten(jax.device_get(state.ema)).items():
        wanted = sum(
            weight * params[name].astype(np.float64)
            for weight, params in zip(weights, history, strict=True)
        )
        assert got.dtype == np.float32
        assert np.abs(wanted - history[-1][name]).max() > 0.01, "the average lags behind"
        # Largest difference measured: 4e-8.
        np.testing.assert_allclose(got, wanted, atol=5e-7, err_msg=name)


def _pairs(one: object, other: object) -> list[tuple]:
    return list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def _model(offset: float) -> dict:
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(offset), random_params(CONFIG))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run whose parameters and averages differ, of which two checkpoints are kept."""
    folder = tmp_path_factory.mktemp("run")
    keep_config(folder / "config.json", CONFIG, resumed=False)
    writer = Checkpoints(str(folder), 2)
    for step in (1, 2):
        params, ema = _model(10 + step), _model(step)
        buffers = {"router_bias": params.pop("router_bias")}
        del ema["router_bias"]
        state = TrainState(np.int32(step), params, buffers, (), ema)
        writer.save(step, jax.device_put(state), {"position": step})
    writer.close()
    return folder


@pytest.mark.parametrize("flag", ["live", "background"])
def test_an_export_ships_the_averages(run: pathlib.Path, tmp_path: pathlib.Path, flag: str) -> None:
    live = ("conversation", "speech", "vocoder")
    sources = dict.fromkeys(live if flag == "live" else (flag,), str(run))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(out=str(tmp_path / "released"), **sources):
        export.main(["export"])
    shipped = load_file(tmp_path / "released/model.safetensors")
    # Averages of the newest checkpoint; the selection bias is no average.
    wanted = flatten({**_model(2), "router_bias": _model(12)["router_bias"]})
    if flag == "background":
        wanted = {name: wanted[name] for name in wanted if name.startswith(("backbone", "router"))}
    assert sorted(shipped) == sorted(wanted)
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(shipped[name], leaf, err_msg=name)
