"""The decoder against NumPy: complete sessions, and steps over rings."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import TransformerConfig
from interaction.model import transformer
from interaction.model.decoder import init_memory, run_decoder
from interaction.model.layer_stacks import (
    FIRST_DENSE,
    FIRST_LONG,
    FIRST_SLIDING,
    init_layers,
    separate_layers,
)
from interaction.model.positions import Positions
from interaction.modules.memory import LONG, SLIDING, Memory
from interaction.types import Params
from tests import numpy_decoder

T, SPAN = 170, 9
DENSE = TransformerConfig(
    dim=24, layers=6, dense_layers=1, heads=4, kv_heads=1, sliding_kv_heads=2, head_dim=8,
    experts=5, experts_per_token=2, expert_ffn=12, dense_ffn=20, window=10, long_window=40,
    long_every=3, relative_states=3, relative_extent=30, log_scaling_from=20,
)  # fmt: skip
SPARSE = TransformerConfig(
    dim=24, layers=4, heads=4, kv_heads=2, sliding_kv_heads=4, head_dim=8, experts=5,
    experts_per_token=3, shared_experts=1, expert_ffn=12, window=10, long_window=40, long_every=2,
    relative_states=3, relative_extent=60,
)  # fmt: skip


def random_params(cfg: TransformerConfig) -> tuple[Params, np.ndarray]:
    """Parameters of which none is one or zero, and a selection bias."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(partial(init_layers, cfg), jax.random.key(0))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        factor = any(word in path[-1].key for word in ("norm", "scale"))
        return np.asarray(factor + 0.36 * rng.standard_normal(leaf.shape), np.float32)

    bias = 0.2 * rng.standard_normal((cfg.layers, cfg.experts))
    return jax.tree_util.tree_map_with_path(draw, shapes), bias.astype(np.float32)


def in_order(cfg: TransformerConfig, params: Params) -> list[dict]:
    """The parameters of each layer, as float64."""
    layers: list[tuple[str, tuple[int, ...]]] = []
    sliding, dense = cfg.long_every - 1, cfg.dense_layers
    if dense:
        layers += [(FIRST_DENSE, (i,)) for i in range(dense)]
        layers += [(FIRST_SLIDING, (i,)) for i in range(sliding - dense)]
        layers += [(FIRST_LONG, (0,))]
    for group in range(cfg.layers // cfg.long_every - bool(dense)):
        layers += [(SLIDING, (group, i)) for i in range(sliding)] + [(LONG, (group,))]
    return [
        {name: leaf[at].astype(float) for name, leaf in params[stack].items()}
        for stack, at in layers
    ]


@pytest.fixture(params=[DENSE, SPARSE], ids=["dense", "sparse"], scope="module")
def case(request: pytest.FixtureRequest) -> tuple:
    cfg = request.param
    params, bias = random_params(cfg)
    x = np.random.default_rng(6).standard_normal((2, T, cfg.dim)).astype(np.float32)
    layers = in_order(cfg, params)
    return cfg, params, bias, x, [numpy_decoder.decoder(cfg, layers, bias, one) for one in x]


def run(
    cfg: TransformerConfig,
    params: Params,
    bias: np.ndarray,
    x: np.ndarray,
    valid: np.ndarray,
    memory: Memory | None,
) -> tuple:
    nothing = jnp.zeros(valid.shape, jnp.uint32), jnp.zeros((len(x), 0), jnp.int32)
    return run_decoder(cfg, params, bias, Positions(x, valid, *nothing), memory)


def close(got: jax.Array, wanted: np.ndarray) -> None:
    assert np.max(np.abs(got - wanted)) < 2e-5 * np.max(np.abs(wanted))


@pytest.mark.parametrize("apart", [False, True])
def test_complete_sessions(case: tuple, apart: bool) -> None:
    cfg, params, bias, x, wanted = case
    params = separate_layers(params) if apart else params
    step = jax.jit(partial(run, cfg, memory=None))
    got, memory, aux = step(params, bias, x, np.ones(x.shape[:2], bool))
    close(got, np.stack(wanted))
    assert memory is None
    sparse = np.arange(cfg.layers) >= cfg.dense_layers
    np.testing.assert_array_equal(aux.load.sum(1), sparse * 2 * T * cfg.experts_per_token)


def test_steps_over_rings(case: tuple) -> None:
    """One session takes 1 to 9 positions a step, the other takes none in every third step."""
    cfg, params, bias, x, wanted = case
    rng, done = np.random.default_rng(7), np.zeros(2, int)
    step = jax.jit(partial(run, cfg))
    memory, outputs = init_memory(cfg, 2, SPAN), ([], [])
    turn = 0
    while done.min() < T:
        size = np.minimum(rng.integers(1, SPAN + 1, 2) * [1, turn % 3 > 0], T - done)
        rows = np.full((2, SPAN, cfg.dim), 50.0, np.float32)
        for row in range(2):
            rows[row, : size[row]] = x[row, done[row] : done[row] + size[row]]
        out, memory, _ = step(params, bias, rows, np.arange(SPAN) < size[:, None], memory)
        for row in range(2):
            outputs[row].append(out[row, : size[row]])
        done, turn = done + size, turn + 1
    close(jnp.stack([jnp.concatenate(rows) for rows in outputs]), np.stack(wanted))
    np.testing.assert_array_equal(memory.clock, [T, T])


def test_an_index_of_hours_steps_back(case: tuple) -> None:
    """The same slots, blocks and distances after the index has stepped back."""
    cfg, params, bias, x, _ = case
    cfg = dataclasses.replace(cfg, long_window=100)
    step = jax.jit(partial(run, cfg))
    memory, valid = init_memory(cfg, 2, SPAN), np.ones((2, SPAN), bool)
    for at in range(0, 16 * SPAN, SPAN):
        _, memory, _ = step(params, bias, x[:, at : at + SPAN], valid, memory)
    assert [memory.caches[kind].k.shape[2] for kind in (SLIDING, LONG)] == [128, 192]
    lap = 384  # the least index at which both rings are at their first slots
    late = memory._replace(clock=memory.clock + lap * (1 + (1 << 30) // lap))
    later = memory._replace(clock=memory.clock + lap * ((1 << 20) // lap))
    steps = [step(params, bias, x[:, :SPAN], valid, one) for one in (late, later)]
    np.testing.assert_array_equal(steps[0][0], steps[1][0])
    # Far from the start, where fewer keys would be seen.
    assert 1 << 20 < steps[0][1].clock[0] < 1 << 30 < late.clock[0]
    again = [step(params, bias, x[:, :SPAN], valid, memory)[0] for _, memory, _ in steps]
    np.testing.assert_array_equal(again[0], again[1])


def test_layers_of_one_group_with_dense_ones_come_apart() -> None:
    cfg = dataclasses.replace(DENSE, layers=3)
    params = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(partial(init_layers, cfg), jax.random.key(0))
    )
    found = transformer.separate_layers(params)
    assert {name: len(layers) for name, layers in found.items()} == {
        FIRST_DENSE: 1,
        FIRST_SLIDING: 1,
        FIRST_LONG: 1,
    }
