"""Every config file builds a run whose mesh and batch fit its model."""

import functools
import pathlib
import runpy

import jax
import pytest

from experiments import compile_tpu
from interaction.compiled.slices import find_slice
from interaction.config import ModelConfig
from interaction.distributed import sharding
from interaction.distributed.collectives import SESSIONS
from interaction.training.objective import find_objective
from interaction.training.train_config import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "experiments/configs").glob("*.py"))


def _config(path: pathlib.Path) -> TrainConfig:
    return runpy.run_path(str(path))["get_config"]()


@functools.cache
def _parameters(objective: str, model: ModelConfig) -> dict:
    params, buffers = jax.eval_shape(find_objective(objective, model).init, jax.random.key(0))
    return {**params, **buffers}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_mesh_and_batch_fit_the_model(path: pathlib.Path) -> None:
    config = _config(path)
    assert config.name == path.stem
    mesh = sharding.abstract_mesh(config.mesh)
    found = sharding.shardings(mesh, _parameters(config.objective, config.model))
    assert all(place.mesh == mesh for place in jax.tree.leaves(found))
    assert config.batch % (config.accumulate * sharding.size(mesh, *SESSIONS)) == 0
    assert not config.sample_every or mesh.size == 1  # samples need the model on one device


def test_compile_tpu_compiles_the_run_of_small() -> None:
    """The command in docs/tpu_pods.md has the mesh and batch of the run."""
    config, slices = _config(ROOT / "experiments/configs/small.py"), find_slice("v5p-2048")
    request = compile_tpu.Request("small", "train", "v5p-2048", {}, 0, 1_024, 1, None, ())
    request = compile_tpu.complete(request, config.model, slices.chips)
    assert (request.mesh, request.sessions) == (config.mesh, config.batch)
