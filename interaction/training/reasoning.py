"""Training of the background model: thoughts, calls and answers, as branches of a record.

A batch holds, beside the record (see `features`; the model's own speech is not read), `followed`
int32[b], how many of its micro-turns come before the branch, `thought` int32[b, l], the branch's
tokens with PAD at the end (PAD alone where a record has none), and `thought_wanted` int32[b, l], 1
where the model is to produce the token by itself. Later micro-turns, and what arrives in them, are
as if they were not there.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.model import Arrivals, TurnInputs, encode, init_params, read_out, read_text
from interaction.ops import dmel, router, sampling
from interaction.sharding import whole
from interaction.training import features
from interaction.training.conversation import (
    BIAS_RATE,
    ROUTER_Z_WEIGHT,
    likeliest,
    negative_log_likelihood,
)
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.types import Array, Params, Special

HEARD_WEIGHT = 0.1  # keeps what the trunk knows of hearing; the words are in the record as well


class Aux(NamedTuple):
    """Shares of losses and rates that add up to those of a batch, each float32[]."""

    thought: Array  # cross-entropy of the wanted tokens, nats a token
    heard: Array  # cross-entropy of the user's transcription, nats a word
    router_z: Array  # router z-loss (arXiv 2202.08906)
    thought_accuracy: Array  # of wanted tokens
    exact: Array  # of branches: all wanted tokens are right, teacher-forced
    heard_accuracy: Array  # of the user's word tokens


def followed_turns(batch: Batch) -> Array:
    """Micro-turns before the branch, bool[b, n]."""
    return jnp.arange(batch["text"].shape[1]) < batch["followed"][:, None]


def wanted_tokens(batch: Batch) -> Array:
    """Tokens that the model is to produce, bool[b, l - 1]: those after the first of a branch."""
    return batch["thought_wanted"][:, 1:] > 0


def reasoning_totals(config: ModelConfig, batch: Batch) -> dict[str, Array]:
    """What the losses of a batch are divided by, see `Objective`."""
    turns = followed_turns(batch)
    beside = branch_arrivals(config, batch).token != Special.PAD
    found = {
        "branches": jnp.sum(jnp.any(wanted_tokens(batch), axis=1)),
        "wanted": jnp.sum(wanted_tokens(batch)),
        "heard": jnp.sum((batch["heard"] != Special.NONE) & turns[..., None]),
        "positions": jnp.sum(turns) * (config.audio_positions + 1) + jnp.sum(beside),
    }
    return {name: jnp.float32(count) for name, count in found.items()}


def branch_arrivals(config: ModelConfig, batch: Batch) -> Arrivals:
    """Text that arrived in the micro-turns that were followed, and then the branch's tokens.

    Returns:
      [b, m + l]; a branch's tokens stand one a micro-turn, as the reasoner reads and writes them.
    """
    span = jnp.uint32(config.turn_span)
    first = batch["followed"][:, None].astype(jnp.uint32)
    place = first + jnp.arange(batch["thought"].shape[1], dtype=jnp.uint32)
    thought = Arrivals(batch["thought"], place * span)
    arrived = features.arrivals(batch, config)
    if arrived is None:
        return thought
    before = arrived.time < first * span
    arrived = arrived._replace(token=jnp.where(before, arrived.token, Special.PAD))
    return Arrivals(*(jnp.concatenate(pair, axis=1) for pair in zip(arrived, thought, strict=True)))


def branch_inputs(config: ModelConfig, batch: Batch, keys: Array) -> TurnInputs:
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
    return TurnInputs(
        user=dmel.dmel_bins(user, config.audio),
        own=None,
        hear_own=jnp.zeros(batch["text"].shape),
        heard=features.delayed(features.misheard(batch["heard"], mishear_keys), Special.NONE),
        last=features.delayed(batch["text"], Special.SILENT),
        exists=followed_turns(batch),
    )


def reasoning_sums(
    config: ModelConfig, trunk: Params, tail: Array, thought: Array, batch: Batch
) -> dict[str, Array]:
    """Losses and hits, float32[] each, as sums over a batch.

    Args:
      config: The model's.
      trunk: Its parameters.
      tail: [b, n, audio_positions + 1, d], from `model.encode`.
      thought: [b, l, d], the branch's positions in the last layer.
      batch: See the module.
    """
    weights = whole(trunk["read_out"], "read_out", config.transformer.dtype)
    logits = read_text(config, weights, thought[:, :-1])
    token, wanted = batch["thought"][:, 1:], wanted_tokens(batch)
    right = likeliest(logits, token)
    heard_logits = read_out(config, weights, tail)[1]
    heard, turns = batch["heard"], followed_turns(batch)[..., None]
    words = turns & (heard != Special.NONE)
    sums = {
        "thought": negative_log_likelihood(logits, token, wanted),
        "heard": negative_log_likelihood(heard_logits, heard, turns),
        "thought_hits": jnp.sum(right & wanted),
        "exact": jnp.sum(jnp.all(right | ~wanted, axis=1) & jnp.any(wanted, axis=1)),
        "heard_hits": jnp.sum(words & likeliest(heard_logits, heard)),
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
    inputs, beside = branch_inputs(config, batch, keys), branch_arrivals(config, batch)
    tail, x, reports = encode(config, params["trunk"], buffers["router_bias"], inputs, beside)
    thought = x[:, -batch["thought"].shape[1] :]
    sums = reasoning_sums(config, params["trunk"], tail, thought, batch)
    totals = {name: jnp.maximum(count, 1) for name, count in totals.items()}
    aux = Aux(
        thought=sums["thought"] / totals["wanted"],
        heard=sums["heard"] / totals["heard"],
        router_z=jnp.sum(reports.router_z) / totals["positions"],
        thought_accuracy=sums["thought_hits"] / totals["wanted"],
        exact=sums["exact"] / totals["branches"],
        heard_accuracy=sums["heard_hits"] / totals["heard"],
    )
    loss = aux.thought + HEARD_WEIGHT * aux.heard + ROUTER_Z_WEIGHT * aux.router_z
    return loss, {"aux": aux, "load": reports.load}


def reasoning_finish(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    """Metrics of a step, and the routers' selection bias after it."""
    bias = router.update_bias(buffers["router_bias"], sums["load"], BIAS_RATE)
    return sums["aux"]._asdict(), {"router_bias": bias}


def reasoning_objective(config: ModelConfig) -> Objective:
    """The trunk alone: a background model is mute."""

    def init(key: Array) -> tuple[Params, Buffers]:
        trunk, _, bias = init_params(config, key)
        return {"trunk": trunk}, {"router_bias": bias}

    return Objective(
        init=init,
        loss=partial(reasoning_loss, config),
        totals=partial(reasoning_totals, config),
        finish=reasoning_finish,
    )
