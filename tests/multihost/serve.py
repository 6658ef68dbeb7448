"""One of two processes that serve a model: streams its rows and writes its replies."""

import json
import pathlib
import sys
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

import interaction
from experiments.check_mesh import small_model
from experiments.train import join_hosts
from interaction.distributed import sharding
from interaction.pretrained.lazy_array import LazyArray
from interaction.types import Chunk, Reply

SESSIONS, STEPS = 8, 20
MODEL = small_model()
# Two groups in a scan; experts are most of the parameters.
MODEL = replace(MODEL, transformer=replace(MODEL.transformer, dense_layers=0, expert_ffn=512))
Step = Callable[[interaction.StreamState, Chunk], tuple[interaction.StreamState, Reply]]


def inputs() -> list[Chunk]:
    """Chunks of all sessions with inactive and reset rows; in the last one a row is NaN."""
    rng, samples = np.random.default_rng(0), MODEL.audio.turn_samples
    chunks = [
        Chunk(
            audio=rng.normal(0, 0.1, (SESSIONS, samples)).astype(np.float32),
            active=rng.random(SESSIONS) < 0.8,
            reset=rng.random(SESSIONS) < 0.1,
            seed=rng.integers(0, 100, SESSIONS, np.int32),
        )
        for _ in range(STEPS)
    ]
    chunks[-1].audio[5, 3] = np.nan
    chunks[-1].active[5] = True
    return chunks


def stream(step: Step, state: interaction.StreamState, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Replies to the given rows of the inputs by field, each [turn, row, ...]."""
    replies = []
    for chunk in inputs():
        state, reply = step(state, jax.tree.map(lambda leaf: leaf[rows], chunk))
        replies.append(jax.device_get(reply))
    return {name: np.stack([getattr(r, name) for r in replies]) for name in Reply._fields}


def count_reading() -> list[int]:
    """A list to which the number of elements of each part is added when it is read."""
    read, sizes = LazyArray.__getitem__, []

    def counted(self: LazyArray, index: tuple[slice, ...]) -> np.ndarray:
        part = read(self, index)
        sizes.append(part.size)
        return part

    LazyArray.__getitem__ = counted
    return sizes


def held(params: dict) -> int:
    """Number of elements of parameters on this process's devices, each counted once."""
    return sum(
        sum({str(shard.index): shard.data.size for shard in leaf.addressable_shards}.values())
        for leaf in jax.tree.leaves(params)
    )


def main(folder: str, mesh: str, out: str) -> None:
    """Serves `folder` on `mesh`, in which devices of the two processes alternate."""
    join_hosts()
    process = jax.process_index()
    sizes = count_reading()
    turns = np.reshape(np.array(jax.devices()), (2, -1)).T.ravel().tolist()
    model = interaction.load(folder, mesh=sharding.make_mesh(json.loads(mesh), turns))
    figures = {"read": sum(sizes), "held": held(model.params)}
    rows = model._rows.places(model._rows.count(SESSIONS))
    replies = stream(model.step, model.init_state(len(rows)), rows)
    # If only one process makes a mistake, its rows are refused, and the other one does not wait.
    chunk = jax.tree.map(lambda leaf: leaf[rows], inputs()[0])._replace(active=None)
    state = model.init_state(len(rows))
    state, reply = model.step(state, chunk._replace(audio=chunk.audio[:, process:]))
    figures["mistaken"] = reply.refused
    figures["clocks"] = [np.asarray(shard.data) for shard in state.clock.addressable_shards]
    for name, wrong in {"others": len(rows) * (1 + process), "none": len(rows) * process}.items():
        try:
            model.init_state(wrong)
        except ValueError as error:
            figures[name] = str(error)
    try:
        interaction.Conversation(model)
    except ValueError as error:
        figures["alone"] = str(error)
    foreign = [device for device in jax.devices() if device.process_index != process][:1]
    try:
        interaction.load(folder, mesh=sharding.make_mesh({}, foreign))
    except ValueError as error:
        figures["named"] = str(error)
    np.savez(pathlib.Path(out) / str(process), rows=rows, **figures, **replies)


if __name__ == "__main__":
    main(*sys.argv[1:])
