"""Outputs of the last layer: text logits, transcript logits and the condition of speech."""

from typing import NamedTuple

from interaction.config import ModelConfig
from interaction.model.positions import modules
from interaction.modules.router_stats import BlockAux
from interaction.types import Array, Params


class Outputs(NamedTuple):
    """Outputs of the transformer for n micro-turns."""

    text_logits: Array  # float32[b, n, v]
    transcript_logits: Array  # float32[b, n, audio_positions, v]
    hidden: Array  # float[b, n, d], conditions speech
    aux: BlockAux  # load float32[l, e]; router_z float32[l]


def apply_heads(config: ModelConfig, params: Params, tail: Array) -> tuple[Array, Array, Array]:
    """Logits and speech condition from the last layer, see `Heads`.

    Args:
      config: Model configuration.
      params: Parameters of the heads, from `gather_and_cast`.
      tail: float[b, n, audio_positions + 1, d], from `take_positions`.

    Returns:
      Text logits float32[b, n, v], transcript logits float32[b, n, audio_positions, v], and the
      normalised hidden state float[b, n, d].
    """
    _, _, _, heads = modules(config)
    return heads(config).apply({"params": params}, tail[:, :, :-1], tail[:, :, -1])


def text_head(config: ModelConfig, params: Params, x: Array) -> Array:
    """Text logits at any positions of the last layer.

    Args:
      config: Model configuration.
      params: Parameters of the heads, from `gather_and_cast`.
      x: float[b, m, d], from `encode` or `run_cached`.

    Returns:
      float32[b, m, v].
    """
    return apply_heads(config, params, x[:, :, None])[0]
