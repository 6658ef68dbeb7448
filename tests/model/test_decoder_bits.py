"""The decoder's bits: the same in one pass, in steps, in a gradient, and beside other sessions.

The programs are compiled as training and the step compile theirs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import ModelConfig, TransformerConfig
from interaction.distributed import sharding
from interaction.distributed.xla_options import compiler_options
from interaction.model.decoder import init_memory, run_decoder
from interaction.model.layer_stacks import init_layers
from interaction.model.positions import Positions
from interaction.modules.memory import Memory
from interaction.modules.text import Heads
from interaction.types import Array, Params

pytestmark = pytest.mark.optimised

VOCAB, SESSIONS, POSITIONS = 40, 3, 200  # the rings have 128 slots
SIZES = dict(dim=48, layers=2, dense_layers=0, heads=4, kv_heads=2, sliding_kv_heads=2)
SIZES |= dict(head_dim=16, experts=6, expert_ffn=24, window=20, long_window=40, long_every=2)
SIZES |= dict(relative_states=16, relative_extent=32, log_scaling_from=25)
OPTIONS = compiler_options("cpu")
RNG = np.random.default_rng(0)


def run(
    cfg: TransformerConfig, params: Params, x: Array, valid: Array, memory: Memory | None
) -> tuple[Array, Memory | None]:
    bias = jnp.zeros((cfg.layers, cfg.experts))
    time, no_ends = jnp.zeros(valid.shape, jnp.uint32), jnp.zeros((len(x), 0, 2), jnp.int32)
    positions = Positions(x, valid, time, no_ends)
    x, memory, _ = run_decoder(cfg, params["layers"], bias, positions, memory)
    head = sharding.gather_and_cast(params["head"], "heads", cfg.dtype)
    config = ModelConfig(transformer=cfg, vocab=VOCAB)
    return Heads(config).apply({"params": head}, x[:, :, None][:, :, :0], x)[0], memory


def steps(cfg: TransformerConfig, params: Params, x: np.ndarray, width: int) -> np.ndarray:
    """Logits of chunks of all sizes up to `width`, each padded to it."""

    def one(params: Params, x: Array, valid: Array, memory: Memory) -> tuple:
        return run(cfg, params, x, valid, memory)

    step = jax.jit(one, compiler_options=OPTIONS)
    memory, parts, at, size = init_memory(cfg, len(x), width), [], 0, 0
    while at < x.shape[1]:
        size = size % width + 1
        new = x[:, at : at + size]
        padded = np.full((len(x), width, cfg.dim), 9.0, x.dtype)
        padded[:, : new.shape[1]] = new
        valid = np.broadcast_to(np.arange(width) < new.shape[1], (len(x), width))
        logits, memory = step(params, padded, valid, memory)
        parts.append(np.asarray(logits)[:, : new.shape[1]])
        at += size
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("dtype", "trained"), [("float32", True), ("bfloat16", False)])
def test_bits_of_a_pass_are_those_of_steps(dtype: str, trained: bool) -> None:
    cfg = TransformerConfig(**SIZES, dtype=dtype)
    head = {"norm": jnp.ones(cfg.dim), "text": jnp.asarray(RNG.normal(size=(cfg.dim, VOCAB)))}
    init = jax.jit(partial(init_layers, cfg))
    params = {"layers": init(jax.random.key(0)), "head": head}
    x = RNG.normal(size=(SESSIONS, POSITIONS, cfg.dim)).astype(jnp.dtype(dtype))

    def loss(params: Params, x: Array) -> tuple[Array, Array]:
        logits, _ = run(cfg, params, x, jnp.ones(x.shape[:2], bool), None)
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1)), logits

    def slope(params: Params, x: Array) -> tuple:
        (total, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params, x)
        return total, logits, gradients

    wanted = jax.jit(slope if trained else loss, compiler_options=OPTIONS)(params, x)[1]
    np.testing.assert_array_equal(steps(cfg, params, x, 7), wanted)
    np.testing.assert_array_equal(steps(cfg, params, x[1:2], 3), wanted[1:2])
