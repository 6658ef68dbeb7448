"""A task small enough for tests of the loop, and sessions for it."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from flax import serialization

from interaction.config import ModelConfig
from interaction.training.objective import Batch, Metrics, Objective
from interaction.types import Array, Params

TURNS = 4


def write_sessions(folder: pathlib.Path, count: int = 24, seed: int = 0) -> pathlib.Path:
    """Writes random sessions of four micro-turns in the stored format."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sessions.arrayrecord"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        record = {
            "user": rng.integers(-9000, 9000, TURNS * 3200).astype(np.int16),
            "model": rng.integers(-9000, 9000, TURNS * 3200).astype(np.int16),
            "text": rng.integers(0, 9, TURNS).astype(np.int32),
            "heard": rng.integers(0, 9, (TURNS, 2)).astype(np.int32),
            "meta": "{}",
        }
        writer.write(serialization.msgpack_serialize(record))
    writer.close()
    return folder


def _init(key: Array) -> tuple[Params, dict]:
    weights = 0.1 * jax.random.normal(key, (16, 16))
    params = {"trunk": {"w": weights, "norm": jnp.ones((16,))}, "speech": {"w": weights[:4]}}
    return params, {"router_bias": jnp.zeros((2, 4))}


def _loss(
    params: Params, buffers: dict, batch: Batch, key: Array
) -> tuple[Array, tuple[Metrics, dict]]:
    frames = batch["user"].astype(jnp.float32).reshape(-1, 16) / 32768
    noised = frames + 0.1 * jax.random.normal(key, frames.shape)
    out = jnp.tanh(noised @ params["trunk"]["w"] * params["trunk"]["norm"])
    error = jnp.mean((out - frames) ** 2) + jnp.mean(params["speech"]["w"] ** 2)
    buffers = {"router_bias": buffers["router_bias"] + jnp.mean(out)}
    return error, ({"error": error, "load": jnp.mean(out, 0)[:4]}, buffers)


def _samples(params: Params, buffers: dict, batch: Batch) -> dict:
    del params, buffers
    return {"user": np.asarray(batch["user"][0] / 32768, np.float32), "score": 0.5}


def objective(config: ModelConfig) -> Objective:
    """Denoises frames of sixteen samples."""
    del config
    return Objective(_init, _loss, _samples)


def broken(config: ModelConfig) -> Objective:
    """Turns NaN from its fourth step on."""
    del config

    def loss(params: Params, buffers: dict, batch: Batch, key: Array) -> tuple:
        error, (metrics, new) = _loss(params, buffers, batch, key)
        error = error * jnp.where(buffers["count"] >= 3, jnp.nan, 1.0)
        return error, (metrics, {**new, "count": buffers["count"] + 1})

    def init(key: Array) -> tuple[Params, dict]:
        params, buffers = _init(key)
        return params, {**buffers, "count": jnp.zeros(())}

    return Objective(init, loss, None)


def digest(tree: object) -> str:
    """A hash of every bit of a pytree."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
