"""Freezing and low-rank adapters, on a task whose gradients are known in closed form."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.distributed import sharding
from interaction.distributed.products import column_dense
from interaction.pretrained.tree_paths import flatten
from interaction.training.adapters import adapt
from interaction.training.checkpoints import Checkpoints, load_part
from interaction.training.frozen import freeze
from interaction.training.loop import load_parts, trained_part
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.training.optimizer import make_optimizer
from interaction.training.state import TrainState, abstract_state, init_state, make_train_step
from interaction.training.train_config import TrainConfig
from interaction.types import Array, Params

LAYERS, D, F, RANK, SESSIONS = 2, 6, 4, 3, 8
RNG = np.random.default_rng(0)
X = np.abs(RNG.standard_normal((SESSIONS, D))).astype(np.float32)
QUERY, HEAD = (RNG.standard_normal((LAYERS, D, F)).astype(np.float32) for _ in range(2))
FROZEN = ("backbone/long", "router_bias")


def _init(key: Array) -> tuple[Params, Buffers]:
    del key
    backbone = {"long": {"query": jnp.asarray(QUERY)}, "heads": {"text": jnp.asarray(HEAD[0])}}
    return {"backbone": backbone}, {"router_bias": jnp.zeros((LAYERS, 4))}


def _loss(
    params: Params, buffers: Buffers, batch: Batch, totals: dict[str, Array], keys: Array
) -> tuple[Array, Sums]:
    """The sum of all products' elements over the batch: the gradient of W is X^T 1."""
    del buffers, keys
    backbone = params["backbone"]
    layers = sharding.gather_and_cast(backbone["long"], "long", "float32")["query"]
    head = sharding.gather_and_cast(backbone["heads"], "heads", "float32")["text"]
    products = [column_dense(batch["x"], weight) for weight in (*layers, head)]
    total = jnp.sum(jnp.stack(products)) / totals["sessions"]
    return total, {"load": total}


def _finish(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    return sums, {"router_bias": buffers["router_bias"] + sums["load"]}


TASK = Objective(_init, _loss, finish=_finish)


def trained(config: TrainConfig, steps: int = 2) -> TrainState:
    objective, optimizer = trained_part(TASK, config), make_optimizer(config)
    size = math.prod(config.mesh.values())
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:size])
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, optimizer, mesh))
    init = jax.jit(functools.partial(init_state, objective, optimizer), out_shardings=where)
    state = init(jax.random.key(1))
    step = make_train_step(objective, optimizer, config, mesh)
    for _ in range(steps):
        state, _ = step(state, {"x": jnp.asarray(X)}, jax.random.key(2))
    return state


@pytest.fixture
def config(tmp_path: pathlib.Path) -> TrainConfig:
    return TrainConfig(
        name="frozen", objective="", data="", workdir=str(tmp_path), batch=SESSIONS, warmup=0
    )


def test_what_is_frozen_stays_and_costs_neither_moments_nor_averages(config: TrainConfig) -> None:
    state = trained(dataclasses.replace(config, frozen=FROZEN))
    buffers = flatten(state.buffers)
    np.testing.assert_array_equal(buffers["backbone/long/query"], QUERY)
    np.testing.assert_array_equal(buffers["router_bias"], 0)
    assert list(flatten(state.params)) == list(flatten(state.ema)) == ["backbone/heads/text"]
    assert not any("long" in name for name in flatten(state.opt_state))
    assert np.all(np.asarray(state.params["backbone"]["heads"]["text"]) < HEAD[0])
    free = trained(config)  # the same task without freezing moves all of it
    np.testing.assert_array_equal(
        free.params["backbone"]["heads"]["text"], state.params["backbone"]["heads"]["text"]
    )
    assert np.all(np.asarray(free.params["backbone"]["long"]["query"]) < QUERY)
    assert np.all(np.asarray(free.buffers["router_bias"]) != 0)


def test_frozen_matrices_have_the_computing_dtype() -> None:
    _, buffers = freeze(TASK, ("backbone/long",), "bfloat16").init(jax.random.key(0))
    found = buffers["backbone"]["long"]["query"]
    np.testing.assert_array_equal(found, QUERY.astype(jnp.bfloat16))


def test_gradients_of_adapters() -> None:
    """Of W + A B: dA = dW B^T and dB = A^T dW, where dW is X^T 1 / sessions."""
    objective = adapt(freeze(TASK, FROZEN, "float32"), RANK)
    params, buffers = objective.init(jax.random.key(0))
    pair = params["lora"]["backbone"]["long"]["query"]
    assert np.all(np.asarray(pair["lora_out"]) == 0)
    into = np.asarray(pair["lora_in"])
    # Random with a variance of 1 / d; 36 numbers.
    assert 0.6 < np.std(into) * D**0.5 < 1.4
    out = RNG.standard_normal((LAYERS, RANK, F)).astype(np.float32)
    pair["lora_out"] = jnp.asarray(out)
    totals, keys = {"sessions": jnp.float32(SESSIONS)}, jax.random.split(jax.random.key(3), 8)

    def loss(params: Params) -> Array:
        return objective.loss(params, buffers, {"x": jnp.asarray(X)}, totals, keys)[0]

    moved = sum(np.sum(X @ (QUERY[layer] + into[layer] @ out[layer])) for layer in range(LAYERS))
    wanted = (moved + np.sum(X @ HEAD[0])) / SESSIONS
    np.testing.assert_allclose(loss(params), wanted, rtol=1e-5)
    found = jax.grad(loss)(params)["lora"]["backbone"]["long"]["query"]
    slope = X.sum(0)[:, None] * np.ones(F) / SESSIONS
    for layer in range(LAYERS):
        np.testing.assert_allclose(found["lora_in"][layer], slope @ out[layer].T, atol=1e-5)
        np.testing.assert_allclose(found["lora_out"][layer], into[layer].T @ slope, atol=1e-5)


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2}, {"data": 2}, {"expert": 2, "fsdp": 2}])
def test_adapters_on_a_mesh_equal_those_of_one_device(
    config: TrainConfig, axes: dict[str, int]
) -> None:
    config = dataclasses.replace(config, frozen=FROZEN, lora_rank=2)
    wanted = jax.device_get(trained(config)._replace(step=None))
    got = jax.device_get(trained(dataclasses.replace(config, mesh=axes))._replace(step=None))
    pair = got.params["lora"]["backbone"]["long"]["query"]
    assert np.all(pair["lora_out"] != 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, wanted)


def test_a_source_with_adapters_has_them_merged(config: TrainConfig) -> None:
    config = dataclasses.replace(config, frozen=FROZEN, lora_rank=RANK)
    state = trained(config)
    checkpoints = Checkpoints(config.run_dir, keep=1)
    checkpoints.save(2, state, {})
    checkpoints.close()
    found, _ = load_part(config.run_dir, "backbone")
    pair = jax.device_get(state.ema)["lora"]["backbone"]["long"]["query"]
    assert np.any(pair["lora_out"] != 0)
    wanted = QUERY + np.matmul(pair["lora_in"], pair["lora_out"])
    assert sorted(found) == ["backbone/heads/text", "backbone/long/query"]
    np.testing.assert_allclose(found["backbone/long/query"], wanted, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"has no part 'lora', wanted one of \['backbone', 'router"
    ):
        load_part(config.run_dir, "lora")
    part = found["backbone/long/query"][slice(1, 2), slice(2, 5), slice(1, 3)]
    np.testing.assert_allclose(part, wanted[1:2, 2:5, 1:3], atol=1e-6)


def test_a_run_with_frozen_parts_starts_from_another(
    config: TrainConfig, tmp_path: pathlib.Path
) -> None:
    """A part of which some is frozen comes from the source as a whole."""
    first = dataclasses.replace(config, frozen=FROZEN, lora_rank=RANK)
    state = trained(first)
    checkpoints = Checkpoints(first.run_dir, keep=1)
    checkpoints.save(2, state, {})
    checkpoints.close()
    objective = trained_part(TASK, dataclasses.replace(config, frozen=("backbone/long",)))
    fresh = init_state(objective, make_optimizer(config), jax.random.key(1))
    mesh = sharding.make_mesh({})
    fresh = jax.device_put(fresh, sharding.shardings(mesh, fresh))
    found = load_parts(fresh, dict.fromkeys(("backbone", "router_bias"), first.run_dir))
    wanted, _ = load_part(first.run_dir, "backbone")
    for name, leaf in (flatten(found.params) | flatten(found.buffers["backbone"])).items():
        path = name if name in wanted else f"backbone/{name}"
        np.testing.assert_array_equal(leaf, np.asarray(wanted[path]))
    head = found.ema["backbone"]["heads"]["text"]
    np.testing.assert_array_equal(head, np.asarray(wanted["backbone/heads/text"]))


@pytest.mark.parametrize(
    ("frozen", "rank", "message"),
    [
        (("backbone/lung",), 0, r"train\.frozen: got 'backbone/lung', wanted a path"),
        (("backbone",), 0, r"train\.frozen: got \['backbone'\], wanted some parameters to train"),
        (("backbone/heads",), 4, r"train\.lora_rank: got 4, wanted frozen layers"),
    ],
)
def test_what_cannot_be_frozen_or_adapted_is_named(
    config: TrainConfig, frozen: tuple[str, ...], rank: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained_part(TASK, dataclasses.replace(config, frozen=frozen, lora_rank=rank))
