"""What several tests need: random parameters, made without compiling anything, and marks."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from jax.typing import DTypeLike

from interaction import presets
from interaction.config import AudioConfig, ModelConfig
from interaction.model.parameters import init_model_params
from interaction.types import Params

# The preset `tiny` with one layer of each kind, for tests that are not about layers.
SMALLEST = dataclasses.replace(
    presets.tiny(), transformer=dataclasses.replace(presets.tiny().transformer, layers=2)
)
# The preset `tiny` with the audio of `demo`: eight dMel frames on two positions.
FINE = dataclasses.replace(presets.tiny(), audio=AudioConfig(), audio_positions=2)


@functools.cache
def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """A whole model's parameters with every leaf random, so that no path is cut off by a zero.

    Matrices have variance 1 / fan-in, scales stand near one, the rest is small.
    """
    abstract = jax.eval_shape(functools.partial(init_model_params, config), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = str(path[-1].key)
        value = rng.standard_normal(leaf.shape).astype(np.float32)
        if "norm" in name:
            return 1 + 0.1 * value
        if len(leaf.shape) < 2 or name in ("position", "slot", "router_bias", "transcript_gain"):
            return 0.1 * value
        return value * leaf.shape[-2] ** -0.5

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, abstract))


def cast(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Values in a dtype of JAX, by NumPy; JAX compiles a conversion for every shape."""
    return np.asarray(values, np.float32).astype(jnp.dtype(dtype))


def mark_optimised(implementations: Iterable[str]) -> list[ParameterSet]:
    """Implementations of a kernel as parameters of a test that compares bits.

    The one that users run on a CPU is marked `optimised`; those of TPU and GPU are interpreted.
    """
    marks = {"xla": pytest.mark.optimised}
    return [pytest.param(one, marks=marks.get(one, ())) for one in implementations]
