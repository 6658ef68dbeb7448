"""What training costs: FLOPs that it needs, and its modelled speed."""

from typing import NamedTuple

from interaction.compiled.costs import (
    backbone_products,
    condition_products,
    flow_products,
    turn_positions,
    turns_per_second,
    windowed,
)
from interaction.compiled.slices import Slice
from interaction.config import ModelConfig
from interaction.training.speech import flow_rows

_BACKWARD = 3  # forward and backward over forward


def train_flops(
    config: ModelConfig, turns: int, text: bool = False, frame: bool = False
) -> dict[str, float]:
    """FLOPs that training on one session needs, by part: what MFU is a share of.

    Forward and backward, three times the forward's matrix products; what the backward pass computes
    again is not counted, and attention is counted at the keys that its windows show. A share of
    micro-turns trains the speech head, see `training.speech`; the vocoder trains elsewhere.

    Args:
      config: The model's.
      turns: Micro-turns of the session.
      text: Whether the batch has positions for text that arrives.
      frame: Whether it has those of frames.
    """
    cfg, audio = config.transformer, config.audio
    tokens = turns * turn_positions(config, text, frame)
    seen = (windowed(tokens, cfg.window), windowed(tokens, cfg.long_window))
    products = backbone_products(config, turns, seen, text, frame)
    flops = {part: 2.0 * _BACKWARD * count for part, count in products.items()}
    rows, flowing = flow_rows(turns)  # a condition each, after one that feeds it and is not trained
    flow = flow_products(config.speech, audio.speech_frames, audio.mels)
    flops["speech condition"] = 2.0 * (_BACKWARD + 1) * rows * condition_products(config)
    flops["speech flow"] = 2.0 * _BACKWARD * flowing * flow
    return flops


class TrainRate(NamedTuple):
    """Modelled speed of training."""

    tokens: float  # positions a second
    audio: float  # seconds of talk a second


def train_rate(config: ModelConfig, place: Slice, turns: int, mfu: float) -> TrainRate:
    """Speed at a stated share of the FLOP/s, sessions of `turns` micro-turns of audio alone."""
    per_turn = sum(train_flops(config, turns).values()) / turns
    rate = mfu * place.chips * place.chip.flops_per_s / per_turn
    return TrainRate(rate * turn_positions(config), rate / turns_per_second(config))
