"""AdamW with a warmed-up schedule, clipping, and weight decay on matrices that get gradients."""

from typing import cast

import jax
import jax.numpy as jnp
import optax

from interaction.training.train_config import TrainConfig
from interaction.types import Array, Params

_UNDECAYED = ("norm", "scale", "bias", "gain", "sink")  # anywhere in a leaf's path


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Warm-up from 0, then the config's schedule; a function of the step alone."""
    rest = max(config.steps - config.warmup, 1)
    peak = config.learning_rate
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest)
    elif config.schedule == "wsd":
        falling = max(round(config.steps * config.decay_fraction), 1)
        flat = max(rest - falling, 0)
        main = optax.linear_schedule(peak, 0.0, min(falling, rest), transition_begin=flat)
    else:
        main = optax.constant_schedule(peak)
    warm = optax.linear_schedule(peak / max(config.warmup, 1), peak, config.warmup)
    return optax.join_schedules([warm, main], [config.warmup])


def decay_mask(params: Params) -> Params:
    """Boolean tree: True for matrices, False for norms, biases, gains and vectors."""

    def decays(path: tuple, leaf: jax.Array) -> bool:
        name = jax.tree_util.keystr(path).lower()
        return leaf.ndim >= 2 and not any(word in name for word in _UNDECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


def scale_by_adamw(config: TrainConfig) -> optax.GradientTransformation:
    """Adam's direction plus decay of matrices; the state is Adam's.

    A parameter that no gradient has ever reached has moments of zero. Adam does not move it, and
    it is not decayed either: weights that were imported, or wait for their data, stay as they are.
    This is decided for a whole array, on a mesh as well. Once a gradient has come, decay goes on in
    steps without one, as Adam's own movement does, until the moments have faded to zero.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2)

    def decay(direction: Array, param: Array, decays: bool, mean: Array, square: Array) -> Array:
        if not decays:
            return direction
        # The square of a tiny gradient is zero, and means of gradients may cancel.
        reached = jnp.any((mean != 0) | (square != 0))
        return jnp.where(reached, direction + config.weight_decay * param, direction)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        direction, moments = adam.update(updates, state)
        moments = cast(optax.ScaleByAdamState, moments)
        mask = decay_mask(cast(Params, params))
        return jax.tree.map(decay, direction, params, mask, moments.mu, moments.nu), moments

    return optax.GradientTransformation(adam.init, update)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) as the config describes it."""
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity(),
        scale_by_adamw(config),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
