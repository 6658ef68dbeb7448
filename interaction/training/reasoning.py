"""Training of the background model: thoughts, calls and answers, as branches of a record.

A batch holds, beside the record (see `features`; the model's own speech is not read), `prefilled`
int32[b], how many of its micro-turns come before the branch, `reasoning` int32[b, l], the branch's
tokens with PAD at the end (PAD alone where a record has none), and `reasoning_wanted` int32[b, l], 1
where the model is to produce the token by itself. Later micro-turns, and what arrives in them, are
as if they were not there.
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
from interaction.training.conversation import (
    BIAS_RATE,
    ROUTER_Z_WEIGHT,
    likeliest,
    negative_log_likelihood,
)
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.types import Array, Params, Special

TRANSCRIPT_WEIGHT = (
    0.1  # keeps what the backbone knows of hearing; the words are in the record as well
)


class ReasoningAux(NamedTuple):
    """Shares of losses and rates that add up to those of a batch, each float32[]."""

    reasoning: Array  # cross-entropy of the wanted tokens, nats a token
    user_transcript: Array  # cross-entropy of the user's transcription, nats a word
    router_z: Array  # router z-loss (arXiv 2202.08906)
    reasoning_accuracy: Array  # of wanted tokens
    exact: Array  # of branches: all wanted tokens are right, teacher-forced
    transcript_accuracy: Array  # of the user's word tokens


def prefilled_turns(batch: Batch) -> Array:
    """Micro-turns before the branch, bool[b, n]."""
    return jnp.arange(batch["text"].shape[1]) < batch["prefilled"][:, None]


def wanted_tokens(batch: Batch) -> Array:
    """Tokens that the model is to produce, bool[b, l - 1]: those after the first of a branch."""
    return batch["reasoning_wanted"][:, 1:] > 0


def reasoning_totals(config: ModelConfig, batch: Batch) -> dict[str, Array]:
    """What the losses of a batch are divided by, see `Objective`."""
    turns = prefilled_turns(batch)
    beside = reasoning_arrivals(config, batch).token != Special.PAD
    found = {
        "branches": jnp.sum(jnp.any(wanted_tokens(batch), axis=1)),
        "wanted": jnp.sum(wanted_tokens(batch)),
        "user_transcript": jnp.sum((batch["user_transcript"] != Special.NONE) & turns[..., None]),
        "positions": jnp.sum(turns) * (config.audio_positions + 1) + jnp.sum(beside),
    }
    return {name: jnp.float32(count) for name, count in found.items()}


def reasoning_arrivals(config: ModelConfig, batch: Batch) -> Arrivals:
    """Text that arrived in the micro-turns that were followed, and then the branch's tokens.

    Returns:
      [b, m + l]; a branch's tokens stand one a micro-turn, as the reasoner reads and writes them.
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
    """What the transformer reads of a batch's records in training, augmented.

    Args:
      config: The model's.
      batch: See the module.
      keys: Typed PRNG keys [b].

    Returns:
      n micro-turns of each session.
    """
    user_keys, mishear_keys = sampling.split_keys(keys, 2)
    user = features.stream_mel(batch["user"], config.audio.user_hop, config.audio)
    user = features.augment_user(user, user_keys)
    transcript = features.corrupt_transcript(batch["user_transcript"], mishear_keys)
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
    """Losses and hits, float32[] each, as sums over a batch.

    Args:
      config: The model's.
      backbone: Its parameters.
      tail: [b, n, audio_positions + 1, d], from `model.encode`.
      reasoning: [b, l, d], the branch's positions in the last layer.
      batch: See the module.
    """
    weights = gather_and_cast(backbone["heads"], "heads", config.transformer.dtype)
    logits = text_head(config, weights, reasoning[:, :-1])
    token, wanted = batch["reasoning"][:, 1:], wanted_tokens(batch)
    right = likeliest(logits, token)
    transcript_logits = apply_heads(config, weights, tail)[1]
    user_transcript, turns = batch["user_transcript"], prefilled_turns(batch)[..., None]
    words = turns & (user_transcript != Special.NONE)
    sums = {
        "reasoning": negative_log_likelihood(logits, token, wanted),
        "user_transcript": negative_log_likelihood(transcript_logits, user_transcript, turns),
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
    """The whole loss, see `Objective.loss`."""
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
        exact=sums["exact"] / totals["branches"],
        transcript_accuracy=sums["transcript_hits"] / totals["user_transcript"],
    )
    loss = aux.reasoning + TRANSCRIPT_WEIGHT * aux.user_transcript + ROUTER_Z_WEIGHT * aux.router_z
    return loss, {"aux": aux, "load": reports.load}


def reasoning_finish(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    """Metrics of a step, and the routers' selection bias after it."""
    bias = router.update_bias(buffers["router_bias"], sums["load"], BIAS_RATE)
    return sums["aux"]._asdict(), {"router_bias": bias}


def reasoning_objective(config: ModelConfig) -> Objective:
    """The backbone alone: a background model is mute."""

    def init(key: Array) -> tuple[Params, Buffers]:
        backbone, _, bias = init_params(config, key)
        return {"backbone": backbone}, {"router_bias": bias}

    return Objective(
        init=init,
        loss=partial(reasoning_loss, config),
        totals=partial(reasoning_totals, config),
        finish=reasoning_finish,
    )
