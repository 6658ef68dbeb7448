"""Schedules, weight decay, and the config's checks."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from interaction.distributed.sharding import make_mesh, replicated
from interaction.training import state as train_state
from interaction.training.objective import Objective, find_objective
from interaction.training.optimizer import decay_mask, learning_rate, make_optimizer
from interaction.training.train_config import TrainConfig
from interaction.types import Array, Params
from tests.training import toy

Arrays = dict[str, np.ndarray]


def _config(**changes: object) -> TrainConfig:
    base = {"name": "x", "objective": "a:b", "data": "d", "steps": 100, "warmup": 10}
    return TrainConfig(**base | changes)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("cosine", 0.5e-3, 0.0), ("wsd", 1e-3, 0.0), ("constant", 1e-3, 1e-3)],
)
def test_schedule(schedule: str, middle: float, end: float) -> None:
    rate = learning_rate(_config(schedule=schedule, decay_fraction=0.3))
    assert float(rate(0)) == pytest.approx(1e-4)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(55)) == pytest.approx(middle)
    assert float(rate(100)) == pytest.approx(end, abs=1e-9)


def test_wsd_falls_over_its_last_part() -> None:
    rate = learning_rate(_config(schedule="wsd", decay_fraction=0.3))
    assert float(rate(70)) == pytest.approx(1e-3)
    assert float(rate(85)) == pytest.approx(0.5e-3)


def test_only_matrices_decay() -> None:
    params = {"w": jnp.ones((2, 2)), "ffn_norm": jnp.ones((3, 2)), "b": jnp.ones(2)}
    assert decay_mask(params) == {"w": True, "ffn_norm": False, "b": False}


DECAYED = dict(schedule="constant", warmup=0, learning_rate=0.1, weight_decay=0.5, grad_clip=0.0)


def _weights() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"busy": (3, 8), "late": (4, 8), "rows": (16, 2), "faint": (2, 2), "norm": (2, 2)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights |= {"idle": rng.standard_normal((5, 8)), "idle_norm": rng.standard_normal((2, 2))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    weights["idle"][0, :3] = -0.0, 0.0, 2e-38
    return weights


def _gradients(step: int) -> Arrays:
    """Of a step: `late` gets one in steps 2 and 5, `rows` in one row, `faint` a very small one."""
    rng = np.random.default_rng([1, step])
    drawn = {name: rng.standard_normal(leaf.shape) for name, leaf in _weights().items()}
    drawn["late"] *= step in (2, 5)
    drawn["rows"] *= np.arange(16)[:, None] == 13
    drawn["faint"] = np.full((2, 2), 1e-25)  # its square is zero in float32
    drawn |= {name: np.zeros_like(drawn[name]) for name in ("idle", "idle_norm")}
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def _adamw(config: TrainConfig, steps: int) -> dict[str, np.ndarray]:
    """Algorithm 2 of arXiv 1711.05101 in float64, decay from the first gradient of a matrix on."""
    after = {}
    for name, start in _weights().items():
        weight = start.astype(np.float64)
        mean, square, begun = np.zeros_like(weight), np.zeros_like(weight), False
        for step in range(steps):
            gradient = _gradients(step)[name].astype(np.float64)
            begun = begun or bool(np.any(gradient != 0))
            mean = config.beta1 * mean + (1 - config.beta1) * gradient
            square = config.beta2 * square + (1 - config.beta2) * gradient**2
            corrected = mean / (1 - config.beta1 ** (step + 1))
            root = np.sqrt(square / (1 - config.beta2 ** (step + 1)))
            decay = config.weight_decay * weight if begun and "norm" not in name else 0.0
            weight = weight - config.learning_rate * (corrected / (root + 1e-8) + decay)
        after[name] = weight
    return after


def _descend(
    optimizer: optax.GradientTransformation, weights: Arrays, moments: object, steps: Iterable[int]
) -> tuple[Arrays, object]:
    @jax.jit
    def descend(weights: Params, moments: object, gradients: Params) -> tuple[Params, object]:
        updates, moments = optimizer.update(gradients, moments, weights)
        return optax.apply_updates(weights, updates), moments

    for step in steps:
        gradients = {name: _gradients(step)[name] for name in weights}
        weights, moments = descend(weights, moments, gradients)
    return jax.device_get((weights, moments))


def _bits(tree: object) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_adamw_equals_its_paper_and_leaves_alone_what_gets_no_gradient() -> None:
    config = _config(**DECAYED)
    optimizer, start = make_optimizer(config), _weights()
    got, _ = _descend(optimizer, start, optimizer.init(start), range(8))
    for name, wanted in _adamw(config, 8).items():
        # Largest difference measured: 3e-7 of weights around 1.
        np.testing.assert_allclose(got[name], wanted, atol=3e-6, err_msg=name)
    for name in ("idle", "idle_norm"):
        assert got[name].tobytes() == start[name].tobytes(), name
    for name in ("busy", "late", "rows", "faint"):
        assert np.abs(got[name] - start[name]).min() > 1e-3, name


def test_what_gets_gradients_is_bit_equal_to_plain_adamw() -> None:
    config = _config(**DECAYED)
    start = {name: leaf for name, leaf in _weights().items() if name in ("busy", "rows", "norm")}
    plain = optax.adamw(
        learning_rate(config),
        config.beta1,
        config.beta2,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    found = [
        _descend(optimizer, start, optimizer.init(start), range(6))[0]
        for optimizer in (plain, make_optimizer(config))
    ]
    assert _bits(found[0]) == _bits(found[1])


def test_moments_alone_tell_what_had_a_gradient() -> None:
    """A run that is saved and resumed decays as one that never stopped."""
    config = _config(**DECAYED)
    optimizer, start = make_optimizer(config), _weights()
    straight, _ = _descend(optimizer, start, optimizer.init(start), range(6))
    half, moments = _descend(optimizer, start, optimizer.init(start), range(4))
    resumed, _ = _descend(make_optimizer(config), half, moments, range(4, 6))
    assert _bits(resumed) == _bits(straight)
    assert resumed["idle"].tobytes() == start["idle"].tobytes()


def test_a_gradient_in_one_device_s_part_decays_the_whole_matrix() -> None:
    config = _config(**DECAYED)
    optimizer, start = make_optimizer(config), _weights()
    mesh = make_mesh({"fsdp": 8})
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    where = {name: split if name == "rows" else replicated(mesh) for name in start}
    got, _ = _descend(optimizer, jax.device_put(start, where), optimizer.init(start), range(2))
    wanted = _adamw(config, 2)["rows"]
    np.testing.assert_allclose(got["rows"], wanted, atol=3e-6)
    assert got["idle"].tobytes() == start["idle"].tobytes()


def _with_video(key: Array) -> tuple[Params, dict]:
    """The toy task with weights for frames, which its sessions do not have."""
    task = toy.objective(_config().model)
    params, buffers = task.init(key)
    video = {"fold_0": jax.random.normal(key, (2, 8, 8))}
    return {**params, "backbone": {**params["backbone"], "video_in": video}}, buffers


def test_a_train_step_on_a_mesh_leaves_weights_without_data_bit_equal() -> None:
    task = toy.objective(_config().model)._replace(init=_with_video)
    config = _config(**DECAYED, batch=8, accumulate=2)
    mesh, optimizer = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4]), make_optimizer(config)
    step = train_state.make_train_step(Objective(*task), optimizer, config, mesh)
    where = jax.tree.map(
        lambda leaf: leaf.sharding, train_state.abstract_state(task, optimizer, mesh)
    )
    init = jax.jit(partial(train_state.init_state, task, optimizer), out_shardings=where)
    state = init(jax.random.key(0))
    before = jax.device_get(state.params["backbone"])
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = {"user": rng.integers(-9_000, 9_000, (8, 160)).astype(np.int16)}
        state, _ = step(state, batch, jax.random.key(1))
    for tree in (state.params, state.ema):
        assert _bits(tree["backbone"]["video_in"]) == _bits(before["video_in"])
        assert np.all(np.asarray(tree["backbone"]["heads"]["text"]) != before["heads"]["text"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("learning_rate", 0.0), ("schedule", "step"), ("ema_decay", 1.0)],
)
def test_bad_config_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"train\.{field}: got"):
        _config(**{field: value})


@pytest.mark.parametrize("name", ["nothing", "interaction.no:thing", "interaction.config:thing"])
def test_unknown_objective_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="objective: got"):
        find_objective(name, _config().model)
