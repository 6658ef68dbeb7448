"""The state of a training run, and the training step on a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from interaction.distributed import sharding
from interaction.distributed.collectives import (
    SESSIONS,
    TENSOR,
    TURNS,
    axis_index,
    axis_size,
    total,
)
from interaction.distributed.jax_settings import refuse_mixed_collectives
from interaction.distributed.xla_options import compiler_options
from interaction.training.finite import GRADIENTS, finite_leaves
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.training.train_config import TrainConfig
from interaction.types import Array, Params


class TrainState(NamedTuple):
    """All that a training step replaces; the PRNG key of a step depends on the seed and `step`."""

    step: Array  # int32[], updates done
    params: Params
    buffers: Buffers
    opt_state: optax.OptState
    ema: Params  # exponential moving average of the parameters, float32


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """The state before the first step; `jax.eval_shape` of it gives the abstract state.

    Args:
      objective: The task.
      optimizer: The optimizer.
      key: Typed PRNG key [], with uint32 key data.

    Returns:
      The state; averages are float32, the other arrays as `objective` and `optimizer` make them.
    """
    params, buffers = objective.init(key)
    ema = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), params, buffers, optimizer.init(params), ema)


def abstract_state(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> TrainState:
    """Shapes, dtypes and shardings of a state, as `jax.ShapeDtypeStruct`s.

    Args:
      objective: The task.
      optimizer: The optimizer.
      mesh: Devices of the run.

    Raises:
      ValueError: The mesh does not divide a parameter, see `sharding.shardings`.
    """
    state = jax.eval_shape(partial(init_state, objective, optimizer), jax.random.key(0))

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:  # noqa: ANN401
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, state, sharding.shardings(mesh, state))


def session_keys(key: Array, sessions: int) -> Array:
    """PRNG keys of this device's sessions; they depend on the places in the batch, not on the mesh.

    Args:
      key: Typed PRNG key [] of the step, with uint32 key data.
      sessions: Sessions of this device.

    Returns:
      Typed PRNG keys [sessions].
    """
    first = axis_index(*SESSIONS) * sessions
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(sessions))


def gradients(
    objective: Objective,
    accumulate: int,
    params: Params,
    buffers: Buffers,
    batch: Batch,
    key: Array,
) -> tuple[Params, Sums, Array]:
    """Gradients of a batch, for one device of a mesh.

    The loss is the sum of the losses of all devices and parts of the batch. Devices along `tensor`
    compute the same loss, so each counts for its fraction.

    Args:
      objective: The task.
      accumulate: Parts of the device's sessions that are computed one after another.
      params: Parameters that the device holds.
      buffers: Buffers that the device holds.
      batch: Sessions of the device, arrays [b, ...].
      key: Typed PRNG key [] of the step, with uint32 key data, the same on all devices.

    Returns:
      Gradients with the shapes and dtypes of `params`; sums of `Objective.loss` over the whole
      batch; and its loss, float32[].
    """
    totals = jax.tree.map(lambda x: total(x, *SESSIONS), objective.totals(batch))
    keys = session_keys(key, len(jax.tree.leaves(batch)[0]))
    copies = axis_size(TENSOR)

    def share(params: Params, batch: Batch, keys: Array) -> tuple[Array, tuple[Array, Sums]]:
        loss, sums = objective.loss(params, buffers, batch, totals, keys)
        return loss / copies, (loss, sums)

    grad = jax.grad(share, has_aux=True)
    if accumulate == 1:
        grads, (loss, sums) = grad(params, batch, keys)
    else:
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), (batch, keys))

        def add(so_far: tuple, part: tuple) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, so_far, grad(params, *part)), None

        first = jax.eval_shape(grad, params, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        (grads, (loss, sums)), _ = jax.lax.scan(add, zeros, parts)
    with jax.named_scope("sum_gradients"):
        grads = jax.tree.map(_sum_copies, grads, sharding.param_specs(grads))
    loss, sums = jax.tree.map(lambda x: total(x, *TURNS), (loss, sums))
    return grads, sums, loss


def _sum_copies(gradient: Array, spec: PartitionSpec) -> Array:
    """Sums a gradient over the mesh axes along which devices hold the same parameter."""
    split = {name for axes in spec for name in ((axes,) if isinstance(axes, str) else axes or ())}
    return total(gradient, *(axis for axis in (*TURNS, TENSOR) if axis not in split))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh | AbstractMesh,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Makes the jitted step `(state, batch, key) -> (state, metrics)`; `state` is donated.

    Args:
      objective: The task.
      optimizer: The optimizer.
      config: Configuration of the run.
      mesh: Devices; `sharding.RULES` split the state, and `collectives.SESSIONS` the batch.

    Returns:
      The step. Its batch holds arrays [b, ...]; its key is the typed PRNG key [] of the run, with
      uint32 key data. Its metrics are the same on all devices: those of `Objective.finish`, "loss"
      float32[], "grad_norm" float32[] before clipping, and `finite.GRADIENTS` bool[leaves].

    Raises:
      ValueError: The devices do not divide the batch, or a parameter, see `sharding.shardings`.
      RuntimeError: JAX's compilation cache is not safe on the mesh, see `jax_settings`.
    """
    refuse_mixed_collectives(sharding.platform(mesh), mesh.size)
    share = config.accumulate * sharding.size(mesh, *SESSIONS)
    if config.batch % share:
        raise ValueError(
            f"batch: got {config.batch}, wanted a multiple of {share}, the number of devices that "
            f"split it times accumulate={config.accumulate}; change the batch or the mesh"
        )
    abstract = abstract_state(objective, optimizer, mesh)
    specs = sharding.param_specs(abstract)
    compute = jax.shard_map(
        partial(gradients, objective, config.accumulate),
        mesh=mesh,
        in_specs=(specs.params, specs.buffers, PartitionSpec(SESSIONS), PartitionSpec()),
        out_specs=(specs.params, PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        grads, sums, loss = compute(state.params, state.buffers, batch, key)
        metrics, buffers = objective.finish(state.buffers, sums)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = cast(Params, optax.apply_updates(state.params, updates))
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(config.ema_decay, (1 + count) / (10 + count))
            ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
            metrics = {**metrics, "loss": loss, "grad_norm": optax.global_norm(grads)}
            metrics[GRADIENTS] = finite_leaves(grads)
        return TrainState(state.step + 1, params, buffers, opt_state, ema), metrics

    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(where, sharding.session_sharding(mesh), sharding.replicated(mesh)),
        out_shardings=(where, sharding.replicated(mesh)),
        compiler_options=compiler_options(sharding.platform(mesh)),
    )
