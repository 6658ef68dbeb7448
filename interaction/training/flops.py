"""Cost of training: the FLOPs that it needs, and its modelled speed."""

from typing import NamedTuple

from interaction.compiled.costs import (
    Seen,
    backbone_products,
    condition_products,
    flow_products,
    turn_positions,
    turns_per_second,
    windowed,
)
from interaction.compiled.slices import Slice
from interaction.config import ModelConfig
from interaction.model.layer_stacks import kinds
from interaction.training.speech_loss import flow_rows

_BACKWARD = 3  # FLOPs of forward and backward pass over those of the forward pass


def train_flops(
    config: ModelConfig, turns: int, text: bool = False, frame: bool = False
) -> dict[str, float]:
    """FLOPs that training on one session needs, by part of the model; the basis of MFU.

    Forward and backward pass count as three times the matrix products of the forward pass.
    Recomputation in the backward pass is not counted, and attention counts only the keys inside its
    windows. A share of the micro-turns trains the speech head, see `training.speech_loss`. The
    vocoder is trained separately and not counted.

    Args:
      config: Model configuration.
      turns: Micro-turns of the session.
      text: Whether the batch has positions for arriving text.
      frame: Whether the batch has positions for frames.
    """
    audio = config.audio
    tokens = turns * turn_positions(config, text, frame)
    seen = {
        name: Seen(
            windowed(tokens, kind.sight.window + kind.sight.first),
            windowed(tokens, min(kind.sight.window, kind.extent)),
        )
        for name, kind in kinds(config.decoder).items()
    }
    products = backbone_products(config, turns, seen, text, frame)
    flops = {part: 2.0 * _BACKWARD * count for part, count in products.items()}
    # Each row runs the condition twice: forward only for its own guess, then trained.
    rows, flowing = flow_rows(turns)
    flow = flow_products(config.speech, audio.speech_frames, audio.mels)
    flops["speech condition"] = 2.0 * (_BACKWARD + 1) * rows * condition_products(config)
    flops["speech flow"] = 2.0 * _BACKWARD * flowing * flow
    return flops


class TrainRate(NamedTuple):
    """Modelled speed of training."""

    tokens: float  # positions per second
    audio: float  # seconds of conversation per second


def train_rate(config: ModelConfig, place: Slice, turns: int, mfu: float) -> TrainRate:
    """Modelled speed of training on sessions with audio alone.

    Args:
      config: Model configuration.
      place: Accelerators.
      turns: Micro-turns of a session.
      mfu: Assumed share of the FLOP/s that is used.
    """
    per_turn = sum(train_flops(config, turns).values()) / turns
    rate = mfu * place.chips * place.chip.flops_per_s / per_turn
    return TrainRate(rate * turn_positions(config), rate / turns_per_second(config))
