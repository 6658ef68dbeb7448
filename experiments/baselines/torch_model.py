"""The transformer in PyTorch: over whole sessions, and step by step with key-value caches."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.baselines import torch_layers as layers
from experiments.baselines.torch_layers import Params
from interaction.config import ModelConfig


class Outputs(NamedTuple):
    """Outputs of the transformer for n micro-turns."""

    text_logits: Tensor  # [b, n, v]
    transcript_logits: Tensor  # [b, n, audio_positions, v]
    hidden: Tensor  # [b, n, d], conditions speech
    router_logits: list[Tensor]  # [b * t, e] of each layer


def backbone_from_released(backbone: dict, bias: np.ndarray, config: ModelConfig) -> Params:
    """Converts the backbone's arrays, which are stacked by layer, into a list of layers.

    Args:
      backbone: Nested dict of numpy arrays of a released model.
      bias: float32[l, e], selection bias of the routers.
      config: Model configuration.

    Returns:
      "audio_in", "text_in" and "heads" unchanged, and "layers" in order.
    """
    cfg = config.transformer
    parts: Params = {
        name: layers.to_torch(backbone[name]) for name in ("audio_in", "text_in", "heads")
    }
    parts["layers"] = []
    for number in range(cfg.layers):
        group, place = divmod(number, cfg.long_every)
        long = place == cfg.long_every - 1
        index = (group,) if long else (group, place)
        stack = backbone["long" if long else "sliding"]
        layer = layers.to_torch({name: leaf[index] for name, leaf in stack.items()})
        for name in ("gate", "up"):
            layer[name] = layer[name].transpose(0, 1).flatten(1).contiguous()
        layer["down"] = layer["down"].flatten(0, 1).contiguous()
        layer["bias"] = torch.tensor(np.asarray(bias[number]))
        parts["layers"].append(layer)
    return parts


def window_of(layer: int, config: ModelConfig) -> int:
    """Number of keys that a query of a layer sees."""
    cfg = config.transformer
    return cfg.long_window if (layer + 1) % cfg.long_every == 0 else cfg.window


class Inputs(NamedTuple):
    """Inputs of the transformer in n micro-turns, without text in or frames."""

    user: Tensor  # int64[b, n, frames, m], dMel of the user
    self_audio: Tensor  # int64[b, n, frames, m], dMel of the model's speech one micro-turn earlier
    self_audio_gain: Tensor  # [b, n], 0 where self audio is blanked
    user_transcript: Tensor  # int64[b, n, audio_positions], of the previous micro-turn
    last: Tensor  # int64[b, n], text-out token of the previous micro-turn


def embed(p: Params, config: ModelConfig, inputs: Inputs) -> Tensor:
    """Embeds n micro-turns: [b, n * (audio_positions + 1), d]."""
    audio = layers.audio_in(
        p["audio_in"], inputs.user, inputs.self_audio, inputs.self_audio_gain, config
    )
    audio = audio + F.embedding(inputs.user_transcript, p["text_in"]["table"])
    said = F.embedding(inputs.last, p["text_in"]["table"]) + p["text_in"]["out_slot"]
    return torch.cat([audio, said[:, :, None]], dim=2).flatten(1, 2)


def clock(turn: int, turns: int, config: ModelConfig) -> Tensor:
    """Times of these positions on the session's clock, int64[t]."""
    first = config.text_slots + config.patches
    start = torch.arange(turn, turn + turns)[:, None] * config.turn_span
    return (start + first + torch.arange(config.audio_positions + 1)).flatten()


def apply_heads(
    p: Params, config: ModelConfig, x: Tensor, turns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the heads on the last layer [b, t, d].

    Returns:
      Text logits [b, n, v], transcript logits [b, n, audio_positions, v], and the hidden states
      [b, n, d] that condition speech.
    """
    x = layers.rms_norm(x, p["norm"])
    x = x.view(x.shape[0], turns, -1, x.shape[-1])
    audio, text = x[:, :, :-1], x[:, :, -1]
    return text @ p["text"], audio @ p["transcript"], text


def forward(p: Params, config: ModelConfig, inputs: Inputs) -> Outputs:
    """Runs n micro-turns from the start of a session at once, teacher-forced.

    Args:
      p: Result of `backbone_from_released`.
      config: Model configuration.
      inputs: Inputs of n micro-turns.

    Returns:
      Logits and hidden states.
    """
    cfg, turns = config.transformer, inputs.last.shape[1]
    x = embed(p, config, inputs)
    turn = layers.rope(clock(0, turns, config), cfg)
    order = torch.arange(x.shape[1])
    age = order[:, None] - order
    router_logits = []
    for number, layer in enumerate(p["layers"]):
        seen = (age >= 0) & (age < window_of(number, config))
        normed = layers.rms_norm(x, layer["attention_norm"])
        mixed = layers.attention(*layers.qkv(layer, normed, turn, cfg), seen, layer["sink"])
        x = x + mixed @ layer["attention_out"]
        normed = layers.rms_norm(x, layer["ffn_norm"]).flatten(0, 1)
        added, logits = layers.experts(layer, normed, layer["bias"], cfg)
        x = x + added.view(x.shape)
        router_logits.append(logits)
    text, user_transcript, hidden = apply_heads(p["heads"], config, x, turns)
    return Outputs(text, user_transcript, hidden, router_logits)


class Cache:
    """Keys and values of one layer that later queries can see."""

    def __init__(self, sessions: int, window: int, config: ModelConfig) -> None:
        self.window = window
        empty = torch.zeros(sessions, 0, config.transformer.kv_heads, config.transformer.head_dim)
        self.keys, self.values = empty, empty

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adds [b, t, g, k]; returns all keys, all values, and what queries see, bool[t, s]."""
        keys = torch.cat([self.keys, k], dim=1)
        values = torch.cat([self.values, v], dim=1)
        self.keys, self.values = keys[:, 1 - self.window :], values[:, 1 - self.window :]
        order = torch.arange(keys.shape[1])
        age = order[-k.shape[1] :, None] - order
        return keys, values, (age >= 0) & (age < self.window)


def make_caches(sessions: int, config: ModelConfig) -> list[Cache]:
    """Empty caches, one per layer."""
    number = config.transformer.layers
    return [Cache(sessions, window_of(layer, config), config) for layer in range(number)]


def step(
    p: Params, caches: list[Cache], config: ModelConfig, turn: int, inputs: Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs micro-turn number `turn`; the caches are updated in place.

    Args:
      p: Result of `backbone_from_released`.
      caches: One cache per layer.
      config: Model configuration.
      turn: Number of the micro-turn.
      inputs: Inputs of that micro-turn, n = 1.

    Returns:
      Text logits [b, 1, v], transcript logits [b, 1, audio_positions, v], and hidden states
      [b, 1, d].
    """
    cfg = config.transformer
    x = embed(p, config, inputs)
    angle = layers.rope(clock(turn, 1, config), cfg)
    for layer, cache in zip(p["layers"], caches, strict=True):
        normed = layers.rms_norm(x, layer["attention_norm"])
        q, k, v = layers.qkv(layer, normed, angle, cfg)
        mixed = layers.attention_step(q, *cache.extend(k, v), layer["sink"])
        x = x + mixed @ layer["attention_out"]
        normed = layers.rms_norm(x, layer["ffn_norm"]).flatten(0, 1)
        x = x + layers.experts(layer, normed, layer["bias"], cfg)[0].view(x.shape)
    return apply_heads(p["heads"], config, x, 1)
