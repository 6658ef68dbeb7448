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


def flow_loss(
    config: ModelConfig, params: Params, hidden: Array, batch: Batch, speech: Array, key: Array
) -> Array:
    """Mean squared errors of the mel over micro-turns with speech: of the flow and of its guess.

    What the head sees when it runs is its own speech. So the frames before a micro-turn are
    noised, and mostly they are its own guess at them (scheduled sampling, arXiv 1506.03099).

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
    keys = jax.random.split(key, 7)
    pick_key, prefix_key, level_key, self_key, noise_key, time_key, splice_key = keys
    speaking = (batch["text"] != Special.SILENT).reshape(-1)
    count = int(SPEAKING_SHARE * speaking.size)
    chance = jax.random.uniform(pick_key, speaking.shape)
    weight, picked = jax.lax.top_k(speaking + chance, count)
    weight = (weight >= 1.0).astype(jnp.float32)

    def rows(turns: Array) -> Array:
        return turns.reshape(-1, *turns.shape[2:])[picked]

    def condition(params: Params, *inputs: Array) -> tuple[Array, Array]:
        return SpeechCondition(config).apply({"params": params["condition"]}, *inputs)

    floor = standardise(jnp.array(cfg.mel_floor), config)
    target = standardise(speech, config)
    before = features.delayed(target, floor)
    tokens = features.token_windows(batch["text"], cfg.token_window)
    prefix = rows(before)[:, -cfg.prefix_frames :]
    _, own = condition(
        jax.lax.stop_gradient(params),
        rows(features.delayed(jax.lax.stop_gradient(hidden), 0)),
        rows(features.delayed(tokens, Special.SILENT)),
        rows(features.delayed(before, floor))[:, -cfg.prefix_frames :],
    )
    spoke = rows(features.delayed(batch["text"], Special.SILENT)) != Special.SILENT
    self_fed = spoke & jax.random.bernoulli(self_key, SELF_FED, (count,))
    own = jnp.maximum(own[:, -cfg.prefix_frames :], floor)
    prefix = jnp.where(self_fed[:, None, None], own, prefix)
    level = 0.4 * jnp.square(jax.random.uniform(level_key, (count, 1, 1)))
    prefix = prefix + level * jax.random.normal(prefix_key, prefix.shape)

    feature, guess = condition(params, rows(hidden), spliced(rows(tokens), splice_key), prefix)
    target = rows(target)
    some = max(count // FLOW_ROWS, 1)  # rows are in random order
    noise = jax.random.normal(noise_key, (some, *target.shape[1:]))
    time = jax.random.uniform(time_key, (some,))
    point = flow.path(target[:some], noise, time)
    estimate = FlowNet(config).apply(
        {"params": params["flow"]}, point, time, feature[:some], guess[:some]
    )

    def error(made: Array) -> Array:
        square = jnp.mean(jnp.square(made - target[: len(made)]), axis=(1, 2))
        among = weight[: len(made)]
        return jnp.sum(square * among) / jnp.maximum(jnp.sum(among), 1.0)

    return error(guess) + error(estimate)


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
