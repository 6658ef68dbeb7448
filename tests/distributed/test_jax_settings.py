"""What the settings of JAX forbid."""

import pathlib
from collections.abc import Iterator

import jax
import optax
import pytest
from jax.sharding import PartitionSpec

from interaction.compiled.compilation_cache import use_compilation_cache
from interaction.distributed import jax_settings, sharding
from interaction.training.state import make_train_step
from interaction.training.train_config import TrainConfig
from tests.training import toy


def test_a_cache_is_unsafe_on_meshes_of_cpus_alone() -> None:
    unsafe = jax_settings.mixes_up_collectives
    assert unsafe("cpu", 2)
    assert not unsafe("cpu", 1)
    assert not unsafe("tpu", 8)
    assert not unsafe("abstract", 8)


def test_no_cache_is_taken_with_several_cpu_devices() -> None:
    assert jax.device_count() > 1
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.fixture
def cache() -> Iterator[str]:
    """A folder of the caller's for compiled programs; nothing is compiled meanwhile."""
    jax.config.update("jax_compilation_cache_dir", "/cache")
    yield "/cache"
    jax.config.update("jax_compilation_cache_dir", None)


def test_a_step_on_several_cpu_devices_refuses_a_cache(cache: str) -> None:
    specs = (PartitionSpec(),) * 3
    two, one = (sharding.make_mesh({"fsdp": n}, jax.devices()[:n]) for n in (2, 1))
    with pytest.raises(RuntimeError, match=rf"got '{cache}', wanted None for a mesh of 2 CPU"):
        sharding.jit_step(lambda *_: 0, two, specs, PartitionSpec())
    sharding.jit_step(lambda *_: 0, one, specs, PartitionSpec())


def test_training_on_several_cpu_devices_refuses_a_cache(
    cache: str, tmp_path: pathlib.Path
) -> None:
    config = TrainConfig("toy", "", "", workdir=str(tmp_path), batch=2)
    mesh = sharding.make_mesh({"fsdp": 2}, jax.devices()[:2])
    with pytest.raises(RuntimeError, match=rf"got '{cache}', wanted None for a mesh of 2 CPU"):
        make_train_step(toy.objective(None), optax.identity(), config, mesh)
