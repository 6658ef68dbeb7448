"""A layer's report on its router, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.modules.block import Block
from interaction.modules.layer_attention import AttentionContext, SequenceKeys
from interaction.ops import rope
from interaction.types import Params
from tests.support import random_params

CONFIG = dataclasses.replace(presets.tiny().transformer, experts=4, experts_per_token=2)


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
    valid = rng.random((b, t)) < 0.6
    bias = np.array([0.2, -0.1, 0.0, 0.05])
    order = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.uint32)
    turn = rope.rope_turn(jnp.asarray(order), CONFIG.head_dim, CONFIG.rope_base)
    keys = SequenceKeys(jnp.asarray(order), jnp.asarray(valid))
    context = AttentionContext(keys, None, jnp.int32(0), CONFIG.window)

    @jax.jit
    def report(x: jax.Array) -> tuple:
        bias32 = jnp.asarray(bias, jnp.float32)
        return Block(CONFIG).apply({"params": layer}, x, turn, valid, bias32, context)[2]

    aux = report(x)
    wide = x[valid].astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * layer["ffn_norm"]
    logits = normed @ layer["router"].astype(np.float64)
    chosen = np.argsort(-(1 / (1 + np.exp(-logits)) + bias), axis=-1)[:, :2]
    wanted = np.bincount(chosen.reshape(-1), minlength=4)
    assert wanted.sum() == 2 * valid.sum() < 2 * valid.size
    np.testing.assert_array_equal(aux.load, wanted)
    z = np.sum(np.log(np.sum(np.exp(logits), axis=-1)) ** 2)
    np.testing.assert_allclose(aux.router_z, z, rtol=1e-5)  # measured: 2e-7
    other = report(np.where(valid[..., None], x, 3.0 * x))
    np.testing.assert_array_equal(other.load, wanted)
    np.testing.assert_allclose(other.router_z, z, rtol=1e-5)
