"""A layer's report on its router, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.modules.decoder_attention import Keys
from interaction.modules.decoder_layer import DecoderLayer
from interaction.ops.sequence_attention import Sight
from interaction.types import Params
from tests.support import random_params

CONFIG = presets.tiny().transformer


@pytest.fixture(scope="module")
def layer() -> Params:
    """The first long layer, whose attention adds nothing: the router reads its input."""
    stack = random_params(presets.tiny())["backbone"]["long"]
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), stack)
    return {**params, "attention_out": np.zeros_like(params["attention_out"])}


def test_report_counts_positions_that_exist(layer: Params) -> None:
    rng = np.random.default_rng(0)
    b, t = 2, 40
    x = rng.standard_normal((b, t, CONFIG.dim)).astype(np.float32)
    valid = np.arange(t) < np.array([[31], [17]])
    bias = np.array([0.2, -0.1, 0.0, 0.05])
    keys = Keys(Sight(CONFIG.long_window, 16, 0), jnp.zeros(b, jnp.int32), None, 0)
    module = DecoderLayer(CONFIG, CONFIG.kv_heads, CONFIG.relative_extent)

    @jax.jit
    def report(x: jax.Array) -> tuple:
        bias32 = jnp.asarray(bias, jnp.float32)
        return module.apply({"params": layer}, x, valid, bias32, None, keys)[3]

    aux = report(x)
    wide = x[valid].astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * layer["ffn_norm"]
    logits = normed @ layer["router"].astype(np.float64)[:, : CONFIG.experts]
    chosen = np.argsort(-(1 / (1 + np.exp(-logits)) + bias), axis=-1)[:, :2]
    wanted = np.bincount(chosen.reshape(-1), minlength=4)
    assert wanted.sum() == 2 * valid.sum() < 2 * valid.size
    np.testing.assert_array_equal(aux.load, wanted)
    z = np.sum(np.log(np.sum(np.exp(logits), axis=-1)) ** 2)
    np.testing.assert_allclose(aux.router_z, z, rtol=1e-5)  # measured: 2e-7
    other = report(np.where(valid[..., None], x, 3.0 * x))
    np.testing.assert_array_equal(other.load, wanted)
    np.testing.assert_allclose(other.router_z, z, rtol=1e-5)
