"""Training of the live model: the text-out stream, the user transcript, and the flow head."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.collectives import SEQUENCE, take_part
from interaction.distributed.sharding import gather_and_cast
from interaction.model import control_tokens
from interaction.model.heads import apply_heads
from interaction.model.parameters import init_params
from interaction.model.sequence import encode
from interaction.model.turn_inputs import TurnInputs, TurnOutputs, assemble, silent_outputs
from interaction.ops import router, sampling
from interaction.training import features
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.training.samples import conversation_samples
from interaction.training.speech_loss import flow_loss, flow_totals
from interaction.types import Array, Params, Special

TRANSCRIPT_WEIGHT, ROUTER_Z_WEIGHT = 0.5, 1e-4
SELF_AUDIO_BLANKED = 0.6  # share of sessions in which the backbone reads no self audio
BIAS_RATE = 1e-3  # step of the router's selection bias
LOGITS = 1 << 27  # most logits in memory at once; for more, the heads run on parts of the turns


class ConversationAux(NamedTuple):
    """Losses and rates as shares that add up to those of a batch, each float32[]."""

    text: Array  # cross-entropy of the text-out stream, nats a word, start or stop
    user_transcript: Array  # cross-entropy of the user transcript, nats a word
    flow: Array  # squared errors of the speech mel, see `flow_loss`; 0 if it is not trained
    router_z: Array  # router z-loss (arXiv 2202.08906)
    text_accuracy: Array  # share of the word tokens
    switch_accuracy: Array  # share of the micro-turns in which speech starts or stops
    transcript_accuracy: Array  # share of the words of the user transcript


class Targets(NamedTuple):
    """Targets of n micro-turns, and masks of what is counted."""

    text: Array  # int32[b, n], text-out tokens
    user_transcript: Array  # int32[b, n, audio_positions], NONE: nothing was said, PAD: unknown
    word: Array  # bool[b, n], the model says a word or delegates with one
    switch: Array  # bool[b, n], the model's speech starts or stops


def make_targets(batch: Batch) -> Targets:
    """Targets of whole sessions; `batch` is described in `features`."""
    text, aloud = batch["text"], control_tokens.spoken_tokens(batch["text"])[0]
    before = features.delayed(aloud, Special.SILENT)
    switch = (aloud == Special.SILENT) != (before == Special.SILENT)
    word = (text >= Special.COUNT) | ((text != Special.SILENT) & (aloud == Special.SILENT))
    return Targets(text, batch["user_transcript"], word, switch)


def conversation_totals(config: ModelConfig, speech_weight: float, batch: Batch) -> dict:
    """Denominators of the losses of a batch, see `Objective.totals`.

    Args:
      config: Model configuration.
      speech_weight: Weight of the flow loss; 0 leaves it out.
      batch: See `features`.

    Returns:
      Counts, float32[] each.
    """
    targets = make_targets(batch)
    positions = targets.text.size * (config.audio_positions + 1)
    if "arrived" in batch:
        positions += jnp.sum(batch["arrived"] != Special.PAD)
    counts = {
        "events": targets.word | targets.switch,
        "words": targets.word,
        "switches": targets.switch,
        "user_transcript": features.words(targets.user_transcript),
    }
    found = {name: jnp.sum(counted, dtype=jnp.float32) for name, counted in counts.items()}
    flow = flow_totals(batch) if speech_weight else {}
    return {**found, "positions": jnp.float32(positions), **flow}


def negative_log_likelihood(logits: Array, target: Array, counted: Array | None = None) -> Array:
    """Negative log-likelihood, summed over all entries or those that are counted.

    Every entry has the same weight, so that the likeliest token is the best guess of when to speak.
    Most entries are silence, so callers divide the sum by the number of words, starts and stops; in
    a mean over all entries the words would hardly count.

    Args:
      logits: float32[..., v].
      target: int32[...].
      counted: bool[...] that broadcasts to the shape of `target`; None counts all.

    Returns:
      float32[], nats.
    """
    top = jax.nn.logsumexp(logits, axis=-1)
    lost = top - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jnp.sum(lost if counted is None else jnp.where(counted, lost, 0))


def likeliest(logits: Array, token: Array) -> Array:
    """Whether no other token is likelier.

    Args:
      logits: float32[..., v].
      token: int32[...].

    Returns:
      bool[...].
    """
    # A maximum instead of argmax, which is slow on CPU; the loss needs the same maximum.
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen >= jnp.max(logits, axis=-1)


def turn_inputs(config: ModelConfig, batch: Batch, speech: Array, keys: Array) -> TurnInputs:
    """Inputs of the transformer for a batch, augmented.

    Args:
      config: Model configuration.
      batch: See `features`.
      speech: float32[b, n, speech_frames, m], log10 magnitude, from `features.speech_mel`.
      keys: Typed PRNG keys [b].

    Returns:
      n micro-turns of each session; shapes [b, n, ...] and dtypes are those of `TurnInputs`
      (integers are int32, gains float32).
    """
    user_keys, blank_keys, noise_keys, transcript_keys = sampling.split_keys(keys, 4)
    b, n = batch["text"].shape
    user = features.stream_mel(batch["user"], config.audio.user, config.audio)
    user = features.augment_user(user, user_keys)
    transcript = features.corrupt_transcript(batch["user_transcript"], transcript_keys)
    gain = (sampling.uniform(blank_keys, (1,)) > SELF_AUDIO_BLANKED).astype(jnp.float32)
    inputs = assemble(
        config,
        user,
        silent_outputs(config, b),
        TurnOutputs(transcript, batch["text"], speech),
        self_audio_gain=jnp.broadcast_to(gain, (b, n)),
    )
    if inputs.self_audio is None:
        return inputs
    return inputs._replace(self_audio=jitter_levels(config, inputs.self_audio, noise_keys))


def jitter_levels(config: ModelConfig, bins: Array, keys: Array) -> Array:
    """Moves dMel levels by a rounded standard normal; the lowest level, silence, is kept.

    Args:
      config: Model configuration.
      bins: int32[b, n, frames, m], dMel levels.
      keys: Typed PRNG keys [b].

    Returns:
      int32[b, n, frames, m], dMel levels in [0, bins).
    """
    jitter = jnp.round(sampling.normal(keys, bins.shape[1:])).astype(jnp.int32)
    return jnp.where(bins > 0, jnp.clip(bins + jitter, 0, config.audio.bins - 1), bins)


def read_losses(
    config: ModelConfig, backbone: Params, tail: Array, targets: Targets
) -> tuple[dict[str, Array], Array]:
    """Losses and right predictions of n micro-turns, with at most `LOGITS` logits in memory.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      tail: [b, n, audio_positions + 1, d] in the compute dtype, from `sequence.encode`.
      targets: Targets of the same micro-turns.

    Returns:
      Sums over micro-turns, float32[] each: cross-entropies in nats, and counts of right
      predictions. And the hidden states [b, n, d] of the text-out positions.
    """
    weights = gather_and_cast(backbone["heads"], "heads", config.transformer.dtype)

    def read(part: tuple[Array, Targets]) -> tuple[dict[str, Array], Array]:
        tail, (text, user_transcript, word, switch) = part
        text_logits, transcript_logits, hidden = apply_heads(config, weights, tail)
        silent = jnp.full_like(text, Special.SILENT)
        hits = {
            "text": word & likeliest(text_logits, text),
            "switch": switch & (likeliest(text_logits, silent) == (text == silent)),
            "user_transcript": features.words(user_transcript)
            & likeliest(transcript_logits, user_transcript),
        }
        sums = {f"{name}_hits": jnp.sum(hit, dtype=jnp.float32) for name, hit in hits.items()}
        sums["text"] = negative_log_likelihood(text_logits, text)
        sums["user_transcript"] = negative_log_likelihood(
            transcript_logits, user_transcript, features.known(user_transcript)
        )
        return sums, hidden

    b, n, positions, _ = tail.shape
    parts = min(-(-b * n * positions * config.vocab // LOGITS), n)
    parts = next(count for count in range(parts, n + 1) if n % count == 0)
    if parts == 1:
        return read((tail, targets))

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(b, parts, n // parts, *x.shape[2:]), 1, 0)

    sums, hidden = jax.lax.map(jax.checkpoint(read), jax.tree.map(split, (tail, targets)))
    hidden = jnp.moveaxis(hidden, 0, 1).reshape(b, n, -1)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), hidden


def conversation_loss(
    config: ModelConfig,
    speech_weight: float,
    params: Params,
    buffers: Buffers,
    batch: Batch,
    totals: dict[str, Array],
    keys: Array,
) -> tuple[Array, Sums]:
    """The loss of a part of a batch, see `Objective.loss`.

    Along the mesh axis `sequence` each device runs the layers on its part of the micro-turns.

    Args:
      config: Model configuration.
      speech_weight: Weight of the flow loss; 0 leaves it out.
      params: `backbone`, and `speech` if the flow head is trained.
      buffers: `router_bias` float32[l, e].
      batch: See `features`.
      totals: Results of `conversation_totals` for the whole batch, float32[] each.
      keys: Typed PRNG keys [b].

    Returns:
      The loss, float32[], with `ConversationAux` and the routers' load float32[l, e] beside it.
    """
    input_keys, speech_keys = sampling.split_keys(keys, 2)
    batch = features.place_transcript(batch, config)
    speech = features.speech_mel(batch, config)
    turns = turn_inputs(config, batch, speech, input_keys), make_targets(batch)
    inputs, targets = jax.tree.map(lambda x: take_part(x, SEQUENCE, dim=1), turns)
    tail, _, reports = encode(
        config, params["backbone"], buffers["router_bias"], inputs, features.arrivals(batch, config)
    )
    sums, hidden = read_losses(config, params["backbone"], tail, targets)
    flow = jnp.zeros(())
    if speech_weight:
        flow = flow_loss(config, params["speech"], hidden, batch, speech, totals, speech_keys)
    at_least_one = {name: jnp.maximum(count, 1) for name, count in totals.items()}
    aux = ConversationAux(
        text=sums["text"] / at_least_one["events"],
        user_transcript=sums["user_transcript"] / at_least_one["user_transcript"],
        flow=flow,
        router_z=jnp.sum(reports.router_z) / totals["positions"],
        text_accuracy=sums["text_hits"] / at_least_one["words"],
        switch_accuracy=sums["switch_hits"] / at_least_one["switches"],
        transcript_accuracy=sums["user_transcript_hits"] / at_least_one["user_transcript"],
    )
    loss = aux.text + TRANSCRIPT_WEIGHT * aux.user_transcript + speech_weight * aux.flow
    loss = loss + ROUTER_Z_WEIGHT * aux.router_z
    return loss, {"aux": aux, "load": reports.load}


def conversation_finish(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    """Metrics of a step, and the routers' selection bias for the next one.

    `largest_load_fraction` is the largest share of a layer's assignments that goes to one expert.

    Args:
      buffers: `router_bias` float32[l, e].
      sums: Results of `conversation_loss` for the whole batch.
    """
    load = sums["load"]
    assigned = jnp.sum(load, axis=-1, keepdims=True)  # none in a dense layer
    largest = jnp.max(load / jnp.maximum(assigned, 1.0))
    bias = router.update_bias(buffers["router_bias"], load, BIAS_RATE)
    return {**sums["aux"]._asdict(), "largest_load_fraction": largest}, {"router_bias": bias}


def conversation_objective(config: ModelConfig, speech_weight: float = 0.0) -> Objective:
    """Trains the backbone, and the flow head on its hidden states.

    Args:
      config: Model configuration.
      speech_weight: Weight of the flow loss; 0 trains the backbone alone.
    """

    def init(key: Array) -> tuple[Params, Buffers]:
        backbone, speech, bias = init_params(config, key)
        params = {"backbone": backbone}
        if speech_weight:
            params["speech"] = speech
        return params, {"router_bias": bias}

    def show(params: Params, buffers: Buffers, batch: Batch) -> dict:
        return conversation_samples(config, params, buffers["router_bias"], batch)

    return Objective(
        init=init,
        loss=partial(conversation_loss, config, speech_weight),
        totals=partial(conversation_totals, config, speech_weight),
        finish=conversation_finish,
        samples=show,
    )


def joint_objective(config: ModelConfig) -> Objective:
    """Trains backbone and flow head together."""
    return conversation_objective(config, speech_weight=0.5)
