"""Training of the conversation: what to say and when, what the user said, and how it sounds."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.model import TurnInputs, forward, init_params
from interaction.ops import dmel, router
from interaction.training import features
from interaction.training.objective import Batch, Buffers, Metrics, Objective
from interaction.training.samples import conversation_samples
from interaction.training.speech import flow_loss
from interaction.types import Array, Params, Special

HEARD_WEIGHT, ROUTER_Z_WEIGHT = 0.5, 1e-4
BLANK_OWN = 0.6  # share of sessions in which the trunk does not hear the model's own speech
BIAS_RATE = 1e-3  # step of the router's selection bias


class Aux(NamedTuple):
    """Losses and rates of a training forward, each float32[] unless said otherwise."""

    text: Array  # cross-entropy of the text stream, nats a word, start or stop
    heard: Array  # cross-entropy of the user's transcription, nats a word
    flow: Array  # squared errors of the speech mel, see `flow_loss`; 0 where it is not trained
    router_z: Array  # router z-loss (arXiv 2202.08906)
    text_accuracy: Array  # of word tokens
    switch_accuracy: Array  # of micro-turns in which speech starts or stops
    heard_accuracy: Array  # of the user's word tokens
    busiest_expert: Array  # largest share of a layer's assignments that one expert took


def cross_entropy(logits: Array, target: Array, events: Array) -> Array:
    """Cross-entropy in nats an event: its sum over all entries by the number of events.

    Every entry weighs the same, or the likeliest token would not be the best guess at when to
    speak; but most entries are silence, and a mean over them would make the words' part small.

    Args:
      logits: float32[..., v].
      target: int32[...].
      events: bool[...], the entries that are counted.

    Returns:
      float32[].
    """
    top = jax.nn.logsumexp(logits, axis=-1)
    value = top - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jnp.sum(value) / jnp.maximum(jnp.sum(events), 1)


def likeliest(logits: Array, token: Array) -> Array:
    """Whether no token is likelier: bool[...] of float32[..., v] and int32[...]."""
    # Not argmax, which is slow on CPU; and the loss takes the same maximum.
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen >= jnp.max(logits, axis=-1)


def share(hit: Array, among: Array) -> Array:
    """Share of true entries of `hit` where `among` holds."""
    return jnp.sum(hit & among) / jnp.maximum(jnp.sum(among), 1)


def turn_inputs(config: ModelConfig, batch: Batch, speech: Array, key: Array) -> TurnInputs:
    """What the transformer reads of a batch in training, augmented."""
    user_key, blank_key, noise_key, mishear_key = jax.random.split(key, 4)
    b, n = batch["text"].shape
    user = features.stream_mel(batch["user"], config.audio.user_hop, config.audio)
    user = features.augment_user(user, user_key)
    own = features.own_bins(speech, config)
    jitter = jnp.round(jax.random.normal(noise_key, own.shape)).astype(jnp.int32)
    own = jnp.where(own > 0, jnp.clip(own + jitter, 0, config.audio.bins - 1), own)
    hear_own = (jax.random.uniform(blank_key, (b, 1)) > BLANK_OWN).astype(jnp.float32)
    return TurnInputs(
        user=dmel.dmel_bins(user, config.audio),
        own=own,
        hear_own=jnp.broadcast_to(hear_own, (b, n)),
        heard=features.delayed(features.misheard(batch["heard"], mishear_key), Special.NONE),
        last=features.delayed(batch["text"], Special.SILENT),
        text=batch.get("text_in"),
    )


def conversation_loss(
    config: ModelConfig,
    speech_weight: float,
    params: Params,
    buffers: Buffers,
    batch: Batch,
    key: Array,
) -> tuple[Array, tuple[Metrics, Buffers]]:
    """The whole loss, see `Objective.loss`."""
    input_key, speech_key = jax.random.split(key)
    speech = features.speech_mel(batch, config)
    inputs = turn_inputs(config, batch, speech, input_key)
    bias = buffers["router_bias"]
    out = forward(config, params["trunk"], bias, inputs)
    text, heard = batch["text"], batch["heard"]
    silent = jnp.full_like(text, Special.SILENT)
    word = text >= Special.COUNT
    switch = (text == Special.SILENT) != (inputs.last == Special.SILENT)
    said = heard != Special.NONE
    flow = jnp.zeros(())
    if speech_weight:
        flow = flow_loss(config, params["speech"], out.hidden, batch, speech, speech_key)
    tokens = jnp.sum(out.aux.load, axis=-1, keepdims=True)
    aux = Aux(
        text=cross_entropy(out.text_logits, text, word | switch),
        heard=cross_entropy(out.heard_logits, heard, said),
        flow=flow,
        router_z=jnp.sum(out.aux.router_z / tokens[:, 0]) * config.transformer.experts_per_token,
        text_accuracy=share(likeliest(out.text_logits, text), word),
        switch_accuracy=share(likeliest(out.text_logits, silent) == (text == silent), switch),
        heard_accuracy=share(likeliest(out.heard_logits, heard), said),
        busiest_expert=jnp.max(out.aux.load / tokens),
    )
    loss = aux.text + HEARD_WEIGHT * aux.heard + speech_weight * aux.flow
    loss = loss + ROUTER_Z_WEIGHT * aux.router_z
    buffers = {"router_bias": router.update_bias(bias, out.aux.load, BIAS_RATE)}
    return loss, (aux._asdict(), buffers)


def conversation_objective(config: ModelConfig, speech_weight: float = 0.0) -> Objective:
    """The trunk; with a speech weight the flow head learns along, conditioned on the trunk."""

    def init(key: Array) -> tuple[Params, Buffers]:
        trunk, speech, bias = init_params(config, key)
        params = {"trunk": trunk, "speech": speech} if speech_weight else {"trunk": trunk}
        return params, {"router_bias": bias}

    def show(params: Params, buffers: Buffers, batch: Batch) -> dict:
        return conversation_samples(config, params, buffers["router_bias"], batch)

    return Objective(init, partial(conversation_loss, config, speech_weight), show)


def joint_objective(config: ModelConfig) -> Objective:
    """Trunk and flow head together."""
    return conversation_objective(config, speech_weight=0.5)
