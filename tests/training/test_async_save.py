"""A save that runs in the background beside steps that overwrite the state's buffers."""

import pathlib
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.distributed.sharding import make_mesh, shardings
from interaction.training.checkpoints import Checkpoints
from interaction.training.input_pipeline import make_input_pipeline
from interaction.training.state import TrainState
from tests.training import toy


class LateManager:
    """Orbax's manager, which begins to write only when it is told to: the slowest disk there is."""

    def __init__(self, manager: Any) -> None:  # noqa: ANN401
        self.manager, self.go = manager, threading.Event()
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def save(self, step: int, **kwargs: Any) -> None:  # noqa: ANN401
        def write() -> None:
            self.go.wait()
            try:
                self.manager.save(step, **kwargs)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=write)
        self.thread.start()

    def wait_until_finished(self) -> None:
        self.thread.join()
        if self.error is not None:
            raise self.error
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def _state() -> TrainState:
    rng = np.random.default_rng(0)

    def tree() -> dict:
        heads = {"text": rng.standard_normal((512, 512)).astype(np.float32)}
        return {"backbone": {"heads": heads}, "vocoder": {"b": np.full(4, 3.0, np.float32)}}

    moments = {"mu": tree(), "count": np.int32(7)}
    buffers = {"router_bias": rng.standard_normal((2, 4)).astype(np.float32)}
    return TrainState(np.int32(7), tree(), buffers, (moments,), tree())


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2}])
@pytest.mark.parametrize("late", [False, True])
def test_a_save_holds_its_step_while_later_steps_take_the_buffers(
    tmp_path: pathlib.Path, axes: dict[str, int], late: bool
) -> None:
    wanted = _state()
    mesh = make_mesh(axes, jax.devices()[: int(np.prod([1, *axes.values()]))])
    where = shardings(mesh, wanted)
    placed = partial(jax.jit, in_shardings=(where,), out_shardings=where)
    step = placed(lambda state: jax.tree.map(lambda leaf: 2 * leaf + 1, state), donate_argnums=0)
    # Made by a computation: what a transfer made may share numpy's memory.
    state = placed(lambda state: jax.tree.map(jnp.negative, state))(
        jax.tree.map(np.negative, wanted)
    )
    writer = Checkpoints(str(tmp_path), 1)
    if late:
        writer.__dict__["_manager"] = LateManager(writer._manager)
    pipeline = make_input_pipeline(str(toy.write_sessions(tmp_path / "data")), 4, 0)
    writer.save(7, state, pipeline.state())
    leaves = jax.tree.leaves(state)
    for _ in range(3):
        state = step(state)
    jax.block_until_ready(state)
    assert all(leaf.is_deleted() for leaf in leaves), "the step takes the buffers over"
    if late:
        writer._manager.go.set()
    writer.close()
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        wanted,
        where,
    )
    found = Checkpoints(str(tmp_path), 1).restore(abstract, pipeline)
    assert found is not None and found[0] == 7
    assert jax.tree.structure(found[1]) == jax.tree.structure(wanted)
    assert toy.digest(found[1]) == toy.digest(wanted) != toy.digest(state)
