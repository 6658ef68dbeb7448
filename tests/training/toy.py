"""A task small enough for tests of the loop, and sessions for it."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from flax import serialization

from interaction.config import ModelConfig
from interaction.distributed.collectives import SEQUENCE, axis_size
from interaction.distributed.products import column_dense
from interaction.distributed.sharding import gather_and_cast
from interaction.ops import sampling
from interaction.training.objective import Batch, Metrics, Objective, Sums
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
            "user_transcript": rng.integers(0, 9, (TURNS, 2)).astype(np.int32),
            "meta": "{}",
        }
        writer.write(serialization.msgpack_serialize(record))
    writer.close()
    return folder


def _init(key: Array) -> tuple[Params, dict]:
    weights = 0.1 * jax.random.normal(key, (16, 16))
    heads = {"text": weights, "norm": jnp.ones((16,))}
    params = {"backbone": {"heads": heads}, "speech": {"flow": {"w": weights[:4]}}}
    return params, {"router_bias": jnp.zeros((2, 4))}


def _loss(
    params: Params, buffers: dict, batch: Batch, totals: dict[str, Array], keys: Array
) -> tuple[Array, Sums]:
    frames = batch["user"].astype(jnp.float32).reshape(len(keys), -1, 16) / 32768
    noised = frames + 0.1 * sampling.normal(keys, frames.shape[1:])
    weights = gather_and_cast(params["backbone"]["heads"], "heads", "float32")
    out = jnp.tanh(column_dense(noised, weights["text"]) * weights["norm"])
    error = jnp.mean((out - frames) ** 2) + jnp.mean(params["speech"]["flow"]["w"] ** 2)
    share = len(keys) / totals["sessions"] / axis_size(SEQUENCE)
    sums = {"error": error * share, "load": jnp.mean(out, (0, 1))[:4] * share}
    return error * share, {**sums, "batch_crc": _fingerprint(batch["user"], keys)}


def _fingerprint(pcm: Array, keys: Array) -> Array:
    """A checksum uint32[] of sessions and their places; those of parts add up to the batch's."""
    bits = pcm.astype(jnp.uint32) * (2 * jnp.arange(pcm.shape[1], dtype=jnp.uint32) + 1)
    place = jax.random.key_data(keys)[:, 0] | 1
    return jnp.sum(jnp.sum(bits, 1, dtype=jnp.uint32) * place, dtype=jnp.uint32)


def _finish(buffers: dict, sums: Sums) -> tuple[Metrics, dict]:
    return sums, {"router_bias": buffers["router_bias"] + jnp.mean(sums["load"])}


def _samples(params: Params, buffers: dict, batch: Batch) -> dict:
    del params, buffers
    return {"user": np.asarray(batch["user"][0] / 32768, np.float32), "score": 0.5}


def objective(config: ModelConfig) -> Objective:
    """Denoises frames of sixteen samples."""
    del config
    return Objective(_init, _loss, finish=_finish, samples=_samples)


def broken(config: ModelConfig) -> Objective:
    """`objective` whose loss becomes NaN at its fourth step."""
    del config
    return _broken(lambda error, sums, bad, _: (error * jnp.where(bad, jnp.nan, 1.0), sums))


def broken_part(config: ModelConfig) -> Objective:
    """`objective` with a part of the loss, and the loss, that become NaN at its fourth step."""
    del config

    def spoil(error: Array, sums: Sums, bad: Array, _: Params) -> tuple[Array, Sums]:
        factor = jnp.where(bad, jnp.nan, 1.0)
        return error * factor, {**sums, "error": error * factor}

    return _broken(spoil)


def broken_gradient(config: ModelConfig) -> Objective:
    """`objective` in which the gradient of one parameter alone becomes NaN at its fourth step."""
    del config

    def spoil(error: Array, sums: Sums, bad: Array, params: Params) -> tuple[Array, Sums]:
        rooted = jnp.sum(params["speech"]["flow"]["w"]) ** 2
        return error + jnp.sqrt(jnp.where(bad, 0.0, 1.0) * rooted), sums

    return _broken(spoil)


def _broken(spoil: Callable[[Array, Sums, Array, Params], tuple[Array, Sums]]) -> Objective:
    def loss(params: Params, buffers: dict, *rest: Any) -> tuple[Array, Sums]:  # noqa: ANN401
        return spoil(*_loss(params, buffers, *rest), buffers["count"] >= 3, params)

    def finish(buffers: dict, sums: Sums) -> tuple[Metrics, dict]:
        metrics, new = _finish(buffers, sums)
        return metrics, {**new, "count": buffers["count"] + 1}

    def init(key: Array) -> tuple[Params, dict]:
        params, buffers = _init(key)
        return params, {**buffers, "count": jnp.zeros(())}

    return Objective(init, loss, finish=finish)


def digest(tree: object) -> str:
    """A hash of every bit of a pytree."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
