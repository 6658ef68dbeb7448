"""The decoder's bits: the same in one pass, in steps, in a gradient, and beside other sessions.

The programs are compiled as training and the step compile theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import DecoderConfig
from interaction.distributed import sharding
from interaction.distributed.xla_options import compiler_options
from interaction.model.decoder import Memory, init_decoder, init_memory, run_decoder
from interaction.modules.decoder_inputs import TextHead
from interaction.types import Array, Params

pytestmark = pytest.mark.optimised

VOCAB, SESSIONS, POSITIONS = 40, 3, 200  # the rings have 128 slots
SIZES = dict(dim=48, layers=2, dense_layers=0, heads=4, kv_heads=2, sliding_kv_heads=2)
SIZES |= dict(head_dim=16, experts=6, expert_ffn=24, window=20, long_window=40, long_every=2)
SIZES |= dict(relative_states=16, relative_extent=32, log_scaling_from=25)
CHUNKS = (1, 3, 7, 5, 2)
OPTIONS = compiler_options("cpu")
RNG = np.random.default_rng(0)


def run(
    cfg: DecoderConfig, params: Params, x: Array, valid: Array, memory: Memory | None
) -> tuple[Array, Memory | None]:
    bias = jnp.zeros((cfg.layers, cfg.experts))
    x, memory, _ = run_decoder(cfg, params["layers"], bias, x, valid, memory)
    head = sharding.gather_and_cast(params["head"], "heads", cfg.dtype)
    return TextHead(cfg, VOCAB).apply({"params": head}, x)[0], memory


def steps(cfg: DecoderConfig, params: Params, x: np.ndarray) -> np.ndarray:
    """Logits of chunks of mixed sizes, each in the narrowest of two variants that has room."""

    def one(params: Params, x: Array, valid: Array, memory: Memory) -> tuple:
        return run(cfg, params, x, valid, memory)

    step = jax.jit(one, compiler_options=OPTIONS)
    memory, parts, at, turn = init_memory(cfg, len(x), 7), [], 0, 0
    while at < x.shape[1]:
        new = x[:, at : at + CHUNKS[turn % len(CHUNKS)]]
        width = 3 if new.shape[1] <= 3 else 7
        padded = np.full((len(x), width, cfg.dim), 9.0, x.dtype)
        padded[:, : new.shape[1]] = new
        valid = np.broadcast_to(np.arange(width) < new.shape[1], (len(x), width))
        logits, memory = step(params, padded, valid, memory)
        parts.append(np.asarray(logits)[:, : new.shape[1]])
        at, turn = at + new.shape[1], turn + 1
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_of_passes_steps_and_batches(dtype: str) -> None:
    cfg = DecoderConfig(**SIZES, dtype=dtype)
    head = {"norm": jnp.ones(cfg.dim), "text": jnp.asarray(RNG.normal(size=(cfg.dim, VOCAB)))}
    params = {"layers": init_decoder(cfg, jax.random.key(0)), "head": head}
    x = RNG.normal(size=(SESSIONS, POSITIONS, cfg.dim)).astype(jnp.dtype(dtype))

    def loss(params: Params, x: Array) -> tuple[Array, Array]:
        logits, _ = run(cfg, params, x, jnp.ones(x.shape[:2], bool), None)
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1)), logits

    wanted = jax.jit(lambda *a: loss(*a)[1], compiler_options=OPTIONS)(params, x)
    trained = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=OPTIONS)
    np.testing.assert_array_equal(trained(params, x)[0][1], wanted)
    np.testing.assert_array_equal(steps(cfg, params, x), wanted)
    np.testing.assert_array_equal(steps(cfg, params, x[1:2]), wanted[1:2])
