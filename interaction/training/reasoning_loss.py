"""Training of the background model: reasoning, tool calls and answers, in forks of a record.

A batch holds a record (see `features`; the live model's speech is not read) and one fork of it:
`prefilled` int32[b], the number of micro-turns before the fork; `reasoning` int32[b, l], the
reasoning tokens of the fork, with PAD at the end (only PAD for a record without a fork); and
`reasoning_wanted` int32[b, l], 1 where the model has to produce the token itself. Micro-turns after
the fork, and text that arrives in them, are not read.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.sharding import gather_and_cast
from interaction.model.heads import apply_heads, text_head
from interaction.model.parameters import init_params
from interaction.model.sequence import encode
from interaction.model.turn_inputs import (
    Arrivals,
    TurnInputs,
    TurnOutputs,
    assemble,
    silent_outputs,
)
from interaction.ops import router, sampling
from interaction.training import features
from interaction.training.conversation_loss import (
    BIAS_RATE,
    ROUTER_Z_WEIGHT,
    likeliest,
    negative_log_likelihood,
)
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.types import Array, Params, Special

# Small, because the record has the words too; it keeps the backbone's ability to transcribe.
TRANSCRIPT_WEIGHT = 0.1


class ReasoningAux(NamedTuple):
    """Losses and rates as shares that add up to those of a batch, each float32[]."""

    reasoning: Array  # cross-entropy of the wanted reasoning tokens, nats a token
    user_transcript: Array  # cross-entropy of the user transcript, nats a word
    router_z: Array  # router z-loss (arXiv 2202.08906)
    reasoning_accuracy: Array  # share of the wanted reasoning tokens
    exact: Array  # share of the forks whose wanted tokens are all right, teacher-forced
    transcript_accuracy: Array  # share of the words of the user transcript


def prefilled_turns(batch: Batch) -> Array:
    """The micro-turns before the fork.

    Args:
      batch: `text` int32[b, n] and `prefilled` int32[b], see the module.

    Returns:
      bool[b, n].
    """
    return jnp.arange(batch["text"].shape[1]) < batch["prefilled"][:, None]


def wanted_tokens(batch: Batch) -> Array:
    """The reasoning tokens, after the first one of a fork, that the model has to produce itself.

    Args:
      batch: `reasoning_wanted` int32[b, l], see the module.

    Returns:
      bool[b, l - 1].
    """
    return batch["reasoning_wanted"][:, 1:] > 0


def reasoning_totals(config: ModelConfig, batch: Batch) -> dict[str, Array]:
    """Denominators of the losses of a batch, see `Objective.totals`.

    Args:
      config: Model configuration.
      batch: See the module.

    Returns:
      Counts, float32[] each: forks, wanted tokens, words of the user transcript, and positions of
      the transformer.
    """
    turns = prefilled_turns(batch)
    beside = reasoning_arrivals(config, batch).token != Special.PAD
    found = {
        "forks": jnp.sum(jnp.any(wanted_tokens(batch), axis=1)),
        "wanted": jnp.sum(wanted_tokens(batch)),
        "user_transcript": jnp.sum(features.words(batch["user_transcript"]) & turns[..., None]),
        "positions": jnp.sum(turns) * (config.audio_positions + 1) + jnp.sum(beside),
    }
    return {name: jnp.float32(count) for name, count in found.items()}


def reasoning_arrivals(config: ModelConfig, batch: Batch) -> Arrivals:
    """The text that arrived before the fork, and then the reasoning tokens of the fork.

    Args:
      config: Model configuration.
      batch: See the module.

    Returns:
      Tokens int32[b, m + l] and their times uint32[b, m + l]. Reasoning tokens are one micro-turn
      apart, as in the reasoner.
    """
    span = jnp.uint32(config.turn_span)
    first = batch["prefilled"][:, None].astype(jnp.uint32)
    place = first + jnp.arange(batch["reasoning"].shape[1], dtype=jnp.uint32)
    reasoning = Arrivals(batch["reasoning"], place * span)
    arrived = features.arrivals(batch, config)
    if arrived is None:
        return reasoning
    before = arrived.time < first * span
    arrived = arrived._replace(token=jnp.where(before, arrived.token, Special.PAD))
    return Arrivals(
        *(jnp.concatenate(pair, axis=1) for pair in zip(arrived, reasoning, strict=True))
    )


def reasoning_inputs(config: ModelConfig, batch: Batch, keys: Array) -> TurnInputs:
    """Inputs of the transformer for the records of a batch, augmented.

    Args:
      config: Model configuration.
      batch: See the module.
      keys: Typed PRNG keys [b].

    Returns:
      n micro-turns of each session; shapes [b, n, ...] and dtypes are those of `TurnInputs`
      (integers are int32, gains float32).
    """
    user_keys, transcript_keys = sampling.split_keys(keys, 2)
    user = features.stream_mel(batch["user"], config.audio.user, config.audio)
    user = features.augment_user(user, user_keys)
    transcript = features.corrupt_transcript(batch["user_transcript"], transcript_keys)
    silent = silent_outputs(config, len(user))._replace(speech_mel=None)
    return assemble(
        config,
        user,
        silent,
        TurnOutputs(transcript, batch["text"], None),
        self_audio_gain=jnp.zeros(batch["text"].shape),
        exists=prefilled_turns(batch),
    )


def reasoning_sums(
    config: ModelConfig, backbone: Params, tail: Array, reasoning: Array, batch: Batch
) -> dict[str, Array]:
    """Losses and right predictions as sums over a batch.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      tail: [b, n, audio_positions + 1, d] in the compute dtype, from `sequence.encode`.
      reasoning: [b, l, d] in the compute dtype, the last layer at the reasoning tokens.
      batch: See the module.

    Returns:
      float32[] each: cross-entropies in nats, and counts of right predictions.
    """
    weights = gather_and_cast(backbone["heads"], "heads", config.transformer.dtype)
    logits = text_head(config, weights, reasoning[:, :-1])
    token, wanted = batch["reasoning"][:, 1:], wanted_tokens(batch)
    right = likeliest(logits, token)
    transcript_logits = apply_heads(config, weights, tail)[1]
    user_transcript, turns = batch["user_transcript"], prefilled_turns(batch)[..., None]
    words, heard = turns & features.words(user_transcript), turns & features.known(user_transcript)
    sums = {
        "reasoning": negative_log_likelihood(logits, token, wanted),
        "user_transcript": negative_log_likelihood(transcript_logits, user_transcript, heard),
        "reasoning_hits": jnp.sum(right & wanted),
        "exact": jnp.sum(jnp.all(right | ~wanted, axis=1) & jnp.any(wanted, axis=1)),
        "transcript_hits": jnp.sum(words & likeliest(transcript_logits, user_transcript)),
    }
    return {name: jnp.float32(value) for name, value in sums.items()}


def reasoning_loss(
    config: ModelConfig,
    params: Params,
    buffers: Buffers,
    batch: Batch,
    totals: dict[str, Array],
    keys: Array,
) -> tuple[Array, Sums]:
    """The loss of a part of a batch, see `Objective.loss`.

    Args:
      config: Model configuration.
      params: `backbone`.
      buffers: `router_bias` float32[l, e].
      batch: See the module.
      totals: Results of `reasoning_totals` for the whole batch, float32[] each.
      keys: Typed PRNG keys [b].

    Returns:
      The loss, float32[], with `ReasoningAux` and the routers' load float32[l, e] beside it.
    """
    batch = features.place_transcript(batch, config)
    inputs, beside = reasoning_inputs(config, batch, keys), reasoning_arrivals(config, batch)
    tail, x, reports = encode(config, params["backbone"], buffers["router_bias"], inputs, beside)
    reasoning = x[:, -batch["reasoning"].shape[1] :]
    sums = reasoning_sums(config, params["backbone"], tail, reasoning, batch)
    totals = {name: jnp.maximum(count, 1) for name, count in totals.items()}
    aux = ReasoningAux(
        reasoning=sums["reasoning"] / totals["wanted"],
        user_transcript=sums["user_transcript"] / totals["user_transcript"],
        router_z=jnp.sum(reports.router_z) / totals["positions"],
        reasoning_accuracy=sums["reasoning_hits"] / totals["wanted"],
        exact=sums["exact"] / totals["forks"],
        transcript_accuracy=sums["transcript_hits"] / totals["user_transcript"],
    )
    loss = aux.reasoning + TRANSCRIPT_WEIGHT * aux.user_transcript + ROUTER_Z_WEIGHT * aux.router_z
    return loss, {"aux": aux, "load": reports.load}


def reasoning_finish(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    """Metrics of a step, and the routers' selection bias for the next one.

    Args:
      buffers: `router_bias` float32[l, e].
      sums: Results of `reasoning_loss` for the whole batch.
    """
    bias = router.update_bias(buffers["router_bias"], sums["load"], BIAS_RATE)
    return sums["aux"]._asdict(), {"router_bias": bias}


def reasoning_objective(config: ModelConfig) -> Objective:
    """Trains the backbone; a background model is without speech head."""

    def init(key: Array) -> tuple[Params, Buffers]:
        backbone, _, bias = init_params(config, key)
        return {"backbone": backbone}, {"router_bias": bias}

    return Objective(
        init=init,
        loss=partial(reasoning_loss, config),
        totals=partial(reasoning_totals, config),
        finish=reasoning_finish,
    )
