"""AdamW with a warmed-up schedule, clipping, and weight decay on matrices only."""

import jax
import optax

from interaction.training.train_config import TrainConfig
from interaction.types import Params

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


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) as the config describes it."""
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity(),
        optax.scale_by_adam(config.beta1, config.beta2),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
