"""Training of the flow head: flow matching on the mel of micro-turns in which the model speaks."""

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.collectives import SEQUENCE, axis_size, gather, take_part
from interaction.distributed.sharding import gather_and_cast
from interaction.model import control_tokens
from interaction.model.parameters import init_speech
from interaction.modules.speech_out import FlowNet, SpeechCondition, standardise
from interaction.ops import flow, sampling
from interaction.training import features
from interaction.training.objective import Batch, Buffers, Objective, Sums
from interaction.training.samples import speech_samples
from interaction.types import Array, Params, Special

SPEAKING_SHARE = 0.375  # of all micro-turns that a batch has room for
FLOW_ROWS = 4  # one row in so many trains the flow, which costs more than its guess
SPLICED = 0.5  # of the rows have older tokens of another row
SELF_FED = 0.6  # of the rows go on from the head's own guess at the frames before


def spliced(tokens: Array, key: Array) -> Array:
    """Gives a share of token windows an older part that belongs to another row.

    What is heard now hangs on the last words; those before them should not be learnt by heart.

    Args:
      tokens: int32[rows, window], the newest last.
      key: Typed PRNG key.

    Returns:
      The same shape; at least the newer half of a window stays.
    """
    rows, window = tokens.shape
    share_key, cut_key = jax.random.split(key)
    cut = jax.random.randint(cut_key, (rows, 1), 1, window // 2 + 1)
    cut = jnp.where(jax.random.bernoulli(share_key, SPLICED, (rows, 1)), cut, 0)
    return jnp.where(jnp.arange(window) < cut, jnp.roll(tokens, 1, axis=0), tokens)


def flow_rows(turns: int) -> tuple[int, int]:
    """Micro-turns of a session that a batch has room for, and how many of them train the flow."""
    count = max(int(SPEAKING_SHARE * turns), 1)
    return count, max(count // FLOW_ROWS, 1)


def flow_totals(batch: Batch) -> dict[str, Array]:
    """Micro-turns that count in `flow_loss`, of a batch."""
    count, some = flow_rows(batch["text"].shape[1])
    speaking = jnp.sum(control_tokens.spoken_tokens(batch["text"])[0] != Special.SILENT, axis=1)
    return {
        "guessed": jnp.sum(jnp.minimum(speaking, count), dtype=jnp.float32),
        "flowed": jnp.sum(jnp.minimum(speaking, some), dtype=jnp.float32),
    }


def flow_loss(
    config: ModelConfig,
    params: Params,
    hidden: Array,
    batch: Batch,
    speech: Array,
    totals: dict[str, Array],
    keys: Array,
) -> Array:
    """Mean squared errors of the mel over micro-turns with speech: of the flow and of its guess.

    What the head sees when it runs is its own speech. So the frames before a micro-turn are
    noised, and mostly they are its own guess at them (scheduled sampling, arXiv 1506.03099).

    Args:
      config: The model's.
      params: Of the speech head.
      hidden: [b, n, d], the backbone's text-out positions; along the mesh axis `sequence` a part.
      batch: See `features`.
      speech: float32[b, n, speech_frames, m], from `features.speech_mel`.
      totals: Of the whole batch, see `flow_totals`.
      keys: Typed PRNG keys [b].

    Returns:
      float32[], these sessions' share of it.
    """
    cfg = config.speech
    pick, prefixes, levels, selves, noises, times, splices = sampling.split_keys(keys, 7)
    hidden = gather(hidden, SEQUENCE, dim=1)
    text = control_tokens.spoken_tokens(batch["text"])[0]
    speaking = text != Special.SILENT
    count, some = flow_rows(speaking.shape[1])
    chance = sampling.uniform(pick, speaking.shape[1:])
    weight, picked = jax.lax.top_k(speaking + chance, count)  # [b, count], in random order
    weight = (weight >= 1.0).astype(jnp.float32)
    weights = gather_and_cast(params["condition"], "condition", config.transformer.dtype)
    flow_weights = gather_and_cast(params["flow"], "flow", config.transformer.dtype)

    def rows(turns: Array) -> Array:
        return jax.vmap(lambda turns, picked: turns[picked])(turns, picked).reshape(
            -1, *turns.shape[2:]
        )

    def first(rows: Array) -> Array:  # of each session
        return rows.reshape(-1, count, *rows.shape[1:])[:, :some].reshape(-1, *rows.shape[1:])

    def flat(draws: Array) -> Array:
        return draws.reshape(-1, *draws.shape[2:])

    def condition(weights: Params, *inputs: Array) -> tuple[Array, Array]:
        return SpeechCondition(config).apply({"params": weights}, *inputs)

    floor = standardise(jnp.array(cfg.mel_floor), config)
    target = standardise(speech, config)
    before = features.delayed(target, floor)
    tokens = features.token_windows(text, cfg.token_window)
    prefix = rows(before)[:, -cfg.prefix_frames :]
    _, own_guess = condition(
        jax.lax.stop_gradient(weights),
        rows(features.delayed(jax.lax.stop_gradient(hidden), 0)),
        rows(features.delayed(tokens, Special.SILENT)),
        rows(features.delayed(before, floor))[:, -cfg.prefix_frames :],
    )
    spoke = rows(features.delayed(text, Special.SILENT)) != Special.SILENT
    self_fed = spoke & (flat(sampling.uniform(selves, (count,))) < SELF_FED)
    own_guess = jnp.maximum(own_guess[:, -cfg.prefix_frames :], floor)
    prefix = jnp.where(self_fed[:, None, None], own_guess, prefix)
    level = 0.4 * jnp.square(flat(sampling.uniform(levels, (count, 1, 1))))
    prefix = prefix + level * flat(sampling.normal(prefixes, (count, *prefix.shape[1:])))

    window = jax.vmap(spliced)(rows(tokens).reshape(-1, count, cfg.token_window), splices)
    feature, guess = condition(weights, rows(hidden), flat(window), prefix)
    target = rows(target)
    noise = flat(sampling.normal(noises, (some, *target.shape[1:])))
    time = flat(sampling.uniform(times, (some,)))
    point = flow.path(first(target), noise, time)
    estimate = FlowNet(config).apply(
        {"params": flow_weights}, point, time, first(feature), first(guess)
    )

    def error(made: Array, target: Array, weight: Array, total: Array) -> Array:
        square = jnp.mean(jnp.square(made - target), axis=(1, 2))
        return jnp.sum(square * weight) / jnp.maximum(total, 1.0)

    loss = error(guess, target, flat(weight), totals["guessed"])
    loss += error(estimate, first(target), first(flat(weight)), totals["flowed"])
    return loss / axis_size(SEQUENCE)  # along it all devices compute the same


def speech_objective(config: ModelConfig) -> Objective:
    """The flow head alone, from text and its own last frames: the backbone is not run."""

    def init(key: Array) -> tuple[Params, Buffers]:
        return {"speech": init_speech(config, key)}, {}

    def loss(
        params: Params, buffers: Buffers, batch: Batch, totals: dict[str, Array], keys: Array
    ) -> tuple[Array, Sums]:
        del buffers
        speech = features.speech_mel(batch, config)
        hidden = jnp.zeros((*batch["text"].shape, config.transformer.dim))
        hidden = take_part(hidden, SEQUENCE, dim=1)
        value = flow_loss(config, params["speech"], hidden, batch, speech, totals, keys)
        return value, {"flow": value}

    def show(params: Params, buffers: Buffers, batch: Batch) -> dict:
        return speech_samples(config, params, batch)

    return Objective(init, loss, flow_totals, samples=show)
