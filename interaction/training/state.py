"""Everything that a training step reads and replaces, and the step itself on a mesh."""

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
from interaction.distributed.xla_options import compiler_options
from interaction.training.finite import GRADIENTS, finite_leaves
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.training.train_config import TrainConfig
from interaction.types import Array, Params


class TrainState(NamedTuple):
    """A pytree; the key of a step's noise is derived from the run's seed and `step`."""

    step: Array  # int32[], updates done
    params: Params
    buffers: Buffers
    opt_state: optax.OptState
    ema: Params  # float32, averaged parameters


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """The state before the first step. Traceable, so that `eval_shape` gives its abstract form."""
    params, buffers = objective.init(key)
    ema = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), params, buffers, optimizer.init(params), ema)


def abstract_state(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> TrainState:
    """The state's shapes, dtypes and shardings, as `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: The mesh does not divide a parameter, see `sharding.shardings`.
    """
    state = jax.eval_shape(partial(init_state, objective, optimizer), jax.random.key(0))

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:  # noqa: ANN401
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, state, sharding.shardings(mesh, state))


def session_keys(key: Array, sessions: int) -> Array:
    """Typed PRNG keys of this device's sessions, by their places in the batch."""
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

    The loss is the sum of what devices and parts of the batch return. Along `tensor` all devices
    compute the same, so each counts for its fraction.

    Args:
      objective: The task.
      accumulate: Parts that the device's sessions are taken in, one after another.
      params: The device's.
      buffers: The device's.
      batch: The device's sessions.
      key: Of the step, the same on all devices.

    Returns:
      The gradients of the device's parameters, the sums and the loss, these of the whole batch.
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
    """Sums a gradient over the axes along which devices hold the same parameter."""
    split = {name for axes in spec for name in ((axes,) if isinstance(axes, str) else axes or ())}
    return total(gradient, *(axis for axis in (*TURNS, TENSOR) if axis not in split))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh | AbstractMesh,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Returns the jitted step `(state, batch, seed key) -> (state, metrics)`; `state` is donated.

    The state is split as `sharding.RULES` say, a batch's sessions over `collectives.SESSIONS`.
    Metrics are the same on all devices and gain "loss", "grad_norm" (before clipping), and which
    gradients are finite.

    Raises:
      ValueError: The devices do not divide the batch, or a parameter, see `sharding.shardings`.
    """
    share = config.accumulate * sharding.size(mesh, *SESSIONS)
    if config.batch % share:
        raise ValueError(
            f"batch: got {config.batch}, wanted a multiple of {share}, the devices that share it "
            f"out times accumulate={config.accumulate}; change the batch or the mesh"
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
