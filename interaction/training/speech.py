"""Training of the flow head: flow matching on the mel of micro-turns in which the model speaks."""

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


def flow_loss(
    config: ModelConfig, params: Params, hidden: Array, batch: Batch, speech: Array, key: Array
) -> Array:
    """Mean squared error of the velocity over micro-turns with speech.

    The frames before a micro-turn are noised, since what the head sees when it runs is its own.

    Args:
      config: The model's.
      params: Of the speech head.
      hidden: [b, n, d], the trunk's text-out positions.
      batch: See `features`.
      speech: float32[b, n, speech_frames, m], from `features.speech_mel`.
      key: Typed PRNG key.

    Returns:
      float32[].
    """
    cfg = config.speech
    pick_key, prefix_key, level_key, noise_key, time_key = jax.random.split(key, 5)
    speaking = (batch["text"] != Special.SILENT).reshape(-1)
    count = int(SPEAKING_SHARE * speaking.size)
    chance = jax.random.uniform(pick_key, speaking.shape)
    weight, picked = jax.lax.top_k(speaking + chance, count)
    weight = (weight >= 1.0).astype(jnp.float32)

    def rows(turns: Array) -> Array:
        return turns.reshape(-1, *turns.shape[2:])[picked]

    target = standardise(speech, config)
    prefix = rows(features.delayed(target, standardise(jnp.array(cfg.mel_floor), config)))
    prefix = prefix[:, -cfg.prefix_frames :]
    level = 0.4 * jnp.square(jax.random.uniform(level_key, (count, 1, 1)))
    prefix = prefix + level * jax.random.normal(prefix_key, prefix.shape)
    tokens = rows(features.token_windows(batch["text"], cfg.token_window))
    condition = SpeechCondition(config).apply(
        {"params": params["condition"]}, rows(hidden), tokens, prefix
    )
    target = rows(target)
    noise = jax.random.normal(noise_key, target.shape)
    time = jax.random.uniform(time_key, (count,))
    point, velocity = flow.flow_pair(target, noise, time)
    guess = FlowNet(config).apply({"params": params["flow"]}, point, time, prefix, condition)
    error = jnp.mean(jnp.square(guess - velocity), axis=(1, 2))
    return jnp.sum(error * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def speech_objective(config: ModelConfig) -> Objective:
    """The flow head alone, from text and its own last frames: the trunk is not run."""

    def init(key: Array) -> tuple[Params, Buffers]:
        return {"speech": init_speech(config, key)}, {}

    def loss(
        params: Params, buffers: Buffers, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Metrics, Buffers]]:
        speech = features.speech_mel(batch, config)
        hidden = jnp.zeros((*batch["text"].shape, config.transformer.dim))
        value = flow_loss(config, params["speech"], hidden, batch, speech, key)
        return value, ({"flow": value}, buffers)

    def show(params: Params, buffers: Buffers, batch: Batch) -> dict:
        return speech_samples(config, params, batch)

    return Objective(init, loss, show)
