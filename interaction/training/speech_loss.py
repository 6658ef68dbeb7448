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

SPEAKING_SHARE = 0.375  # largest share of the micro-turns of a session that is trained
FLOW_ROWS = 4  # one of so many of these trains the flow, which costs more than its first guess
SPLICED = 0.5  # share of these whose older tokens come from another micro-turn
SELF_FED = 0.6  # share of these that continue the head's own guess at the frames before


def spliced(tokens: Array, key: Array) -> Array:
    """Replaces the older part of some token windows by that of another row.

    The last words determine the sound; the head should not memorise the words before them.

    Args:
      tokens: int32[rows, window], the newest token last.
      key: Typed PRNG key [].

    Returns:
      int32[rows, window]; at least the newer half of each window is kept.
    """
    rows, window = tokens.shape
    share_key, cut_key = jax.random.split(key)
    cut = jax.random.randint(cut_key, (rows, 1), 1, window // 2 + 1)
    cut = jnp.where(jax.random.bernoulli(share_key, SPLICED, (rows, 1)), cut, 0)
    return jnp.where(jnp.arange(window) < cut, jnp.roll(tokens, 1, axis=0), tokens)


def flow_rows(turns: int) -> tuple[int, int]:
    """How many micro-turns of a session of `turns` are trained, and how many train the flow."""
    count = max(int(SPEAKING_SHARE * turns), 1)
    return count, max(count // FLOW_ROWS, 1)


def flow_totals(batch: Batch) -> dict[str, Array]:
    """Denominators of `flow_loss`.

    Args:
      batch: `text` int32[b, n], see `features`.

    Returns:
      Numbers of micro-turns that train the first guess ("guessed") and the flow ("flowed"),
      float32[] each.
    """
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
    """Mean squared errors of the flow and of its first guess, over micro-turns with speech.

    The errors are those of the standardised mel. The flow is conditional flow matching
    (arXiv 2210.02747).

    Args:
      config: Model configuration.
      params: Parameters of the speech head.
      hidden: [b, n, d] in the compute dtype, the backbone's text-out positions; along the mesh axis
        `sequence` a part of n.
      batch: See `features`.
      speech: float32[b, n, speech_frames, m], log10 magnitude, from `features.speech_mel`.
      totals: Results of `flow_totals` for the whole batch, float32[] each.
      keys: Typed PRNG keys [b].

    Returns:
      float32[], these sessions' share of the loss.
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

    def first(rows: Array) -> Array:  # the first `some` rows of each session
        return _flat(rows.reshape(-1, count, *rows.shape[1:])[:, :some])

    target = standardise(speech, config)
    tokens = features.token_windows(text, cfg.token_window)
    prefix = _noised_prefix(
        config, weights, hidden, text, tokens, target, picked, (selves, levels, prefixes)
    )
    window = jax.vmap(spliced)(_pick(tokens, picked).reshape(-1, count, cfg.token_window), splices)
    feature, guess = _condition(config, weights, _pick(hidden, picked), _flat(window), prefix)
    target = _pick(target, picked)
    noise = _flat(sampling.normal(noises, (some, *target.shape[1:])))
    time = _flat(sampling.uniform(times, (some,)))
    point = flow.path(first(target), noise, time)
    estimate = FlowNet(config).apply(
        {"params": flow_weights}, point, time, first(feature), first(guess)
    )
    loss = _error(guess, target, _flat(weight), totals["guessed"])
    loss += _error(estimate, first(target), first(_flat(weight)), totals["flowed"])
    return loss / axis_size(SEQUENCE)  # devices along this axis compute the same loss


def _noised_prefix(
    config: ModelConfig,
    weights: Params,
    hidden: Array,
    text: Array,
    tokens: Array,
    target: Array,
    picked: Array,
    keys: tuple[Array, Array, Array],
) -> Array:
    """The frames before the picked micro-turns, as the head reads them in training.

    When the model runs, the head reads its own frames. So the frames get noise, and where the model
    was already speaking most of them are the head's own guess (scheduled sampling,
    arXiv 1506.03099).

    Args:
      config: Model configuration.
      weights: Parameters of `SpeechCondition`.
      hidden: [b, n, d].
      text: int32[b, n], spoken tokens.
      tokens: int32[b, n, window], their windows.
      target: float32[b, n, speech_frames, m], standardised mel.
      picked: int32[b, count], micro-turns of each session.
      keys: Typed PRNG keys [b] of the choice, the level and the noise.

    Returns:
      float32[b * count, prefix_frames, m], standardised mel.
    """
    cfg, count = config.speech, picked.shape[1]
    selves, levels, noises = keys
    floor = standardise(jnp.array(cfg.mel_floor), config)
    before = features.delayed(target, floor)
    prefix = _pick(before, picked)[:, -cfg.prefix_frames :]
    _, own_guess = _condition(
        config,
        jax.lax.stop_gradient(weights),
        _pick(features.delayed(jax.lax.stop_gradient(hidden), 0), picked),
        _pick(features.delayed(tokens, Special.SILENT), picked),
        _pick(features.delayed(before, floor), picked)[:, -cfg.prefix_frames :],
    )
    spoke = _pick(features.delayed(text, Special.SILENT), picked) != Special.SILENT
    self_fed = spoke & (_flat(sampling.uniform(selves, (count,))) < SELF_FED)
    own_guess = jnp.maximum(own_guess[:, -cfg.prefix_frames :], floor)
    prefix = jnp.where(self_fed[:, None, None], own_guess, prefix)
    level = 0.4 * jnp.square(_flat(sampling.uniform(levels, (count, 1, 1))))
    return prefix + level * _flat(sampling.normal(noises, (count, *prefix.shape[1:])))


def _condition(config: ModelConfig, weights: Params, *inputs: Array) -> tuple[Array, Array]:
    return SpeechCondition(config).apply({"params": weights}, *inputs)


def _pick(turns: Array, picked: Array) -> Array:
    """Micro-turns int32[b, count] of [b, n, ...], as rows [b * count, ...]."""
    return _flat(jax.vmap(lambda turns, picked: turns[picked])(turns, picked))


def _flat(rows: Array) -> Array:
    """[b, count, ...] as [b * count, ...]."""
    return rows.reshape(-1, *rows.shape[2:])


def _error(made: Array, target: Array, weight: Array, total: Array) -> Array:
    """Weighted mean squared error of [rows, frames, m]."""
    square = jnp.mean(jnp.square(made - target), axis=(1, 2))
    return jnp.sum(square * weight) / jnp.maximum(total, 1.0)


def speech_objective(config: ModelConfig) -> Objective:
    """Trains the flow head alone, from text and its own last frames, without the backbone."""

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
