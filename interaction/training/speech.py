"""Training of the flow head: flow matching on the mel of micro-turns in which the model speaks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.model import init_speech
from interaction.modules.speech_out import FlowNet, SpeechCondition, standardise
from interaction.ops import flow
from interaction.training import features
from interaction.training.objective import Batch, Buffers, Metrics, Objective
from interaction.training.samples import speech_samples
from interaction.types import Array, Params, Special

SPEAKING_SHARE = 0.375  # of all micro-turns that a batch has room for
FLOW_SHARE = 0.5  # of those, the ones whose flow is trained; the prior is trained on all


class SpeechLoss(NamedTuple):
    """Errors in standardised mel, each float32[]."""

    prior: Array  # mean squared error of the prior
    flow: Array  # the same of the flow's velocity, over the variance of its noise


def speech_loss(
    config: ModelConfig, params: Params, hidden: Array, batch: Batch, speech: Array, key: Array
) -> SpeechLoss:
    """Errors of prior and flow over micro-turns with speech.

    The frames before a micro-turn are noised, since what the head sees when it runs is its own.

    Args:
      config: The model's.
      params: Of the speech head.
      hidden: [b, n, d], the trunk's text-out positions.
      batch: See `features`.
      speech: float32[b, n, speech_frames, m], from `features.speech_mel`.
      key: Typed PRNG key.

    Returns:
      The errors.
    """
    cfg = config.speech
    pick_key, prefix_key, level_key, noise_key, time_key = jax.random.split(key, 5)
    speaking = (batch["text"] != Special.SILENT).reshape(-1)
    count = int(SPEAKING_SHARE * speaking.size)
    rank, picked = jax.lax.top_k(speaking + jax.random.uniform(pick_key, speaking.shape), count)
    weight = (rank >= 1.0).astype(jnp.float32)  # those that speak come first, in random order

    def rows(turns: Array) -> Array:
        return turns.reshape(-1, *turns.shape[2:])[picked]

    def mean(error: Array) -> Array:
        weights = weight[: error.shape[0]]
        return jnp.sum(jnp.mean(error, axis=(1, 2)) * weights) / jnp.maximum(jnp.sum(weights), 1.0)

    speech = standardise(speech, config)
    target = rows(speech)
    prefix = rows(features.delayed(speech, standardise(jnp.array(cfg.mel_floor), config)))
    prefix = prefix[:, -cfg.prefix_frames :]
    level = 0.5 * jnp.square(jax.random.uniform(level_key, (count, 1, 1)))
    prefix = prefix + level * jax.random.normal(prefix_key, prefix.shape)
    tokens = rows(features.token_windows(batch["text"], cfg.token_window))
    condition, prior = SpeechCondition(config).apply(
        {"params": params["condition"]}, rows(hidden), tokens, prefix
    )
    some = int(FLOW_SHARE * count)
    noise = cfg.prior_std * jax.random.normal(noise_key, (some, *target.shape[1:]))
    time = jax.random.uniform(time_key, (some,))
    start = jax.lax.stop_gradient(prior[:some]) + noise
    point, velocity = flow.flow_pair(target[:some], start, time)
    guess = FlowNet(config).apply(
        {"params": params["flow"]},
        point,
        time,
        prefix[:some, -cfg.flow_prefix :],
        condition[:some],
    )
    return SpeechLoss(
        prior=mean(jnp.square(prior - target)),
        flow=mean(jnp.square(guess - velocity)) / cfg.prior_std**2,
    )


def speech_objective(config: ModelConfig) -> Objective:
    """The flow head alone, from text and its own last frames: the trunk is not run."""

    def init(key: Array) -> tuple[Params, Buffers]:
        return {"speech": init_speech(config, key)}, {}

    def loss(
        params: Params, buffers: Buffers, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Buffers]]:
        speech = features.speech_mel(batch, config)
        hidden = jnp.zeros((*batch["text"].shape, config.transformer.dim))
        errors = speech_loss(config, params["speech"], hidden, batch, speech, key)
        return sum(errors), (errors._asdict(), buffers)

    def show(params: Params, buffers: Buffers, batch: Batch) -> dict:
        return speech_samples(config, params, batch)

    return Objective(init, loss, show)
