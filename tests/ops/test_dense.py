"""Precision of products, and of embedding tables in training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.distributed import sharding
from interaction.distributed.xla_options import compiler_options
from interaction.modules.speech_out import SpeechCondition
from interaction.ops import dense, dmel
from interaction.ops.attention import BLOCKWISE_FROM, attention_blockwise
from tests import golden
from tests.support import random_params

HIGHEST = jax.lax.Precision.HIGHEST


def rounded_products(jaxpr: Any) -> list[str]:  # noqa: ANN401
    """Products of float32 operands that a TPU or GPU would compute with fewer bits."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            exact = eqn.params["precision"] in (HIGHEST, (HIGHEST, HIGHEST))
            wide = all(operand.aval.dtype == jnp.float32 for operand in eqn.invars)
            found += [str(eqn.source_info.name_stack)] if wide and not exact else []
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            found += rounded_products(inner) if hasattr(inner, "eqns") else []
    return found


def test_float32_products_are_exact() -> None:
    assert not rounded_products(golden.trace_step(presets.tiny(), {}, 2).jaxpr)

    def embedded(table: jax.Array) -> jax.Array:
        return jnp.sum(dmel.bag_of_embeddings(table, jnp.zeros((2, 3, 4), jnp.int32)) ** 2)

    def attended(q: jax.Array) -> jax.Array:
        order, valid = (
            jnp.zeros((1, BLOCKWISE_FROM), jnp.uint32),
            jnp.ones((1, BLOCKWISE_FROM), bool),
        )
        return jnp.sum(attention_blockwise(q, q, q, order, order, valid, 8, jnp.zeros(2)))

    for slope, shape in ((embedded, (4, 5, 6)), (attended, (1, BLOCKWISE_FROM, 2, 4))):
        traced = jax.make_jaxpr(jax.grad(slope))(jnp.zeros(shape))
        assert "dot_general" in str(traced) and not rounded_products(traced.jaxpr)


def test_a_table_is_read_rounded_and_learns_in_float32() -> None:
    table = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    places = jnp.zeros(3072, jnp.int32)  # in bfloat16 a sum of ones stops at 256

    def read(table: jax.Array) -> jax.Array:
        return sharding.gather_and_cast({"table": table}, "text_in", "bfloat16")["table"]

    found = jax.jit(read)(table)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, table.astype(jnp.bfloat16))
    # Some platforms remove a cast to bfloat16 and back.
    assert "reduce_precision" in str(jax.make_jaxpr(read)(table))
    slope = jax.jit(jax.grad(lambda table: jnp.sum(read(table)[places])))(table)
    np.testing.assert_array_equal(slope, np.array([[3072.0], [0], [0]]) * np.ones(4))


@pytest.mark.optimised
def test_speech_is_conditioned_alike_in_training_and_in_the_step() -> None:
    config = presets.tiny()
    params = {"condition": random_params(config)["speech"]["condition"]}
    served = sharding.cast_params(params, "bfloat16")
    hidden = jnp.ones((2, config.transformer.dim), jnp.bfloat16)
    tokens = jnp.arange(2 * config.speech.token_window, dtype=jnp.int32).reshape(2, -1)
    prefix = jnp.ones((2, config.speech.prefix_frames, config.audio.mels))

    @jax.jit
    def run(params: dict) -> tuple[jax.Array, jax.Array]:
        weights = sharding.gather_and_cast(params["condition"], "condition", "bfloat16")
        return SpeechCondition(config).apply({"params": weights}, hidden, tokens, prefix)

    for trained, live in zip(run(params), run(served), strict=True):
        np.testing.assert_array_equal(trained, live)


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_row_has_the_same_bits_beside_any_others(dtype: jnp.dtype) -> None:
    rng = np.random.default_rng(0)
    multiply = jax.jit(dense.matmul, compiler_options=compiler_options("cpu"))
    for k, n in ((192, 10), (192, 64), (256, 2_048), (300, 70)):
        a = jnp.asarray(rng.normal(size=(1_000, k)), dtype)
        b = jnp.asarray(rng.normal(size=(k, n)), dtype)
        wanted = np.asarray(multiply(a, b))
        exactly = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        # Measured: 1.3e-5.
        np.testing.assert_allclose(wanted, exactly, atol=5e-5)
        for m in (0, 1, 3, 4, 6, 9, 13, 24, 300, 500):
            np.testing.assert_array_equal(np.asarray(multiply(a[:m], b)), wanted[:m], f"{k} {m}")
