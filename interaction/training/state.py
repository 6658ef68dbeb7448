"""Everything that a training step reads and replaces, and the step itself."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from interaction.compiler import compiler_options
from interaction.training.objective import Batch, Buffers, Metrics, Objective
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


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, ema_decay: float
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Returns the jitted step `(state, batch, seed key) -> (state, metrics)`; `state` is donated.

    Metrics gain "loss" and "grad_norm" (before clipping).
    """

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        grad = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, (metrics, buffers)), grads = grad(state.params, state.buffers, batch, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = cast(Params, optax.apply_updates(state.params, updates))
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
            metrics = {**metrics, "loss": loss, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, buffers, opt_state, ema), metrics

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())
