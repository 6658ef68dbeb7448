"""The transformer in PyTorch: over whole sessions, and step by step with key-value caches."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.baselines import torch_layers as layers
from experiments.baselines.torch_layers import Params
from interaction.config import ModelConfig, TransformerConfig

FIRST = 16  # positions of a session that long layers see for ever
_FEW = 64  # tokens up to which running every expert is faster than sorting
_NEVER = 1 << 62  # position of an empty slot: after all queries


class Outputs(NamedTuple):
    """Outputs of the transformer for n micro-turns."""

    text_logits: Tensor  # [b, n, v]
    transcript_logits: Tensor  # [b, n, audio_positions, v]
    hidden: Tensor  # [b, n, d], conditions speech
    router_logits: list[Tensor]  # [b * t, e] of each layer


def decoder_config(config: ModelConfig) -> TransformerConfig:
    """The configuration of the transformer.

    Raises:
      ValueError: The model is one of those that were released first.
    """
    cfg = config.transformer
    if not isinstance(cfg, TransformerConfig):
        raise ValueError(
            f"transformer: got {type(cfg).__name__}, wanted TransformerConfig; the baselines have "
            "the present architecture alone, choose a preset"
        )
    return cfg


def port_backbone(backbone: dict, bias: np.ndarray, config: ModelConfig) -> Params:
    """Copies the backbone's parameters; matrices that read the same input are joined.

    Args:
      backbone: Nested dict of numpy arrays, whose layers are stacked.
      bias: float32[l, e], selection bias of the routers.
      config: Model configuration.

    Returns:
      "audio_in", "text_in" and "heads" unchanged, and "layers" in order.
    """
    parts: Params = {
        name: layers.to_torch(backbone[name]) for name in ("audio_in", "text_in", "heads")
    }
    parts["layers"], cfg = [], decoder_config(config)
    for number in range(cfg.layers):
        layer = _port_layer(layers.to_torch(layer_of(backbone, number, cfg)))
        layer["bias"] = torch.tensor(np.asarray(bias[number]))
        parts["layers"].append(layer)
    return parts


def layer_of(backbone: dict, number: int, cfg: TransformerConfig) -> dict:
    """The parameters of one layer among those of the backbone, which are stacked."""
    group, place = divmod(number, cfg.long_every)
    if cfg.dense_layers and group == 0:  # this group has stacks of its own
        if place < cfg.dense_layers:
            name, index = "first_dense", place
        elif is_long(number, cfg):
            name, index = "first_long", 0
        else:
            name, index = "first_sliding", place - cfg.dense_layers
    else:
        group -= int(cfg.dense_layers > 0)
        name, index = ("long", group) if is_long(number, cfg) else ("sliding", (group, place))
    return {leaf: stack[index] for leaf, stack in backbone[name].items()}


def _port_layer(layer: Params) -> Params:
    def join(*names: str) -> Tensor:
        return torch.cat([layer.pop(name) for name in names], dim=-1)

    layer["attention_in"] = join("query", "relative", "key", "value")
    layer["kv_conv"] = join("key_conv", "value_conv")
    if "router" not in layer:
        layer["gate_up"], layer["down"] = join("dense_gate", "dense_up"), layer.pop("dense_down")
        return layer
    # Columns by expert, the shared ones last: the gate's, then those of `up`.
    shared = (layer.pop(f"shared_{name}") for name in ("gate", "up"))
    width = layer["gate"].shape[-1]
    shared = torch.cat([part.unflatten(1, (-1, width)) for part in shared], dim=-1)
    routed = join("gate", "up").transpose(0, 1)
    layer["gate_up"] = torch.cat([routed, shared], dim=1).flatten(1)
    layer["down"] = torch.cat([layer["down"].flatten(0, 1), layer.pop("shared_down")])
    return layer


def is_long(number: int, cfg: TransformerConfig) -> bool:
    """Whether a layer is a long one, which sees more and a session's first positions."""
    return (number + 1) % cfg.long_every == 0


class Sight(NamedTuple):
    """What the queries of a kind of layers see of the keys."""

    hidden: Tensor  # [t, s], -inf where a query does not see a key, else 0
    factor: Tensor | None  # [t, 1], multiplies the scores


def look(query: Tensor, key: Tensor, long: bool, cfg: TransformerConfig) -> Sight:
    """What queries at positions int64[t] see of keys at positions int64[s]."""
    age = query[:, None] - key
    window, first = (cfg.long_window, FIRST) if long else (cfg.window, 0)
    seen = (age >= 0) & ((age < window) | (key < first))
    hidden = torch.zeros(age.shape).masked_fill(~seen, -math.inf)
    if not long or window + first <= cfg.log_scaling_from:
        return Sight(hidden, None)
    count = (query[:, None] + 1).clamp_max(window + first)
    return Sight(hidden, 1 + 0.1 * (count / cfg.log_scaling_from).clamp_min(1).log())


class Inputs(NamedTuple):
    """Inputs of the transformer in n micro-turns, without text in or frames."""

    user: Tensor  # int64[b, n, frames, m], dMel of the user
    self_audio: Tensor  # int64[b, n, frames, m], dMel of the model's speech one micro-turn earlier
    self_audio_gain: Tensor  # [b, n], 0 where self audio is blanked
    user_transcript: Tensor  # int64[b, n, audio_positions], of the previous micro-turn
    last: Tensor  # int64[b, n], text-out token of the previous micro-turn


def embed(p: Params, config: ModelConfig, inputs: Inputs) -> Tensor:
    """Embeds n micro-turns: [b, n * (audio_positions + 1), d]."""
    text = p["text_in"]
    audio = layers.audio_in(
        p["audio_in"],
        inputs.user,
        inputs.self_audio,
        inputs.self_audio_gain,
        config.audio_positions,
    )
    audio = audio + layers.embed_tokens(text, inputs.user_transcript) * text["transcript_gain"]
    said = layers.embed_tokens(text, inputs.last) + text["out_slot"]
    return torch.cat([audio, said[:, :, None]], dim=2).flatten(1, 2)


def apply_heads(
    p: Params, config: ModelConfig, x: Tensor, turns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the head on the last layer [b, t, d].

    Returns:
      Text logits [b, n, v], transcript logits [b, n, audio_positions, v], and the hidden states
      [b, n, d] that condition speech.
    """
    x = layers.rms_norm(x, p["norm"]).unflatten(1, (turns, -1))
    logits = x / decoder_config(config).logits_divisor @ p["text"]
    return logits[:, :, -1], logits[:, :, :-1], x[:, :, -1]


def feed_forward(layer: Params, x: Tensor, cfg: TransformerConfig) -> tuple[Tensor, Tensor | None]:
    """Experts or the dense feed-forward of [b, t, d], and the router's logits if there is one."""
    if "router" not in layer:
        return layers.dense_ffn(layer, x), None
    flat = x.flatten(0, 1)
    routing = layers.route(layer, flat, layer["bias"], cfg)
    every = x.is_cuda or len(flat) <= _FEW
    run = layers.experts if every else layers.sorted_experts
    return run(layer, flat, routing, cfg).view(x.shape), routing.logits


def forward(p: Params, config: ModelConfig, inputs: Inputs) -> Outputs:
    """Runs n micro-turns from the start of a session at once, teacher-forced.

    Args:
      p: Result of `port_backbone`.
      config: Model configuration.
      inputs: Inputs of n micro-turns.

    Returns:
      Logits and hidden states.
    """
    cfg, turns = decoder_config(config), inputs.last.shape[1]
    x = embed(p, config, inputs)
    b, order = x.shape[0], torch.arange(x.shape[1])
    sights = {long: look(order, order, long, cfg) for long in (False, True)}
    router_logits = []

    def none(width: int) -> Tensor:  # before the first position
        return torch.zeros(b, layers.TAPS - 1, width)

    for number, layer in enumerate(p["layers"]):
        sight = sights[is_long(number, cfg)]
        normed = layers.rms_norm(x, layer["attention_norm"])
        heads, _ = layers.project(layer, normed, none(layer["kv_conv"].shape[1]), cfg)
        bias = layers.relative_bias(heads.states, layer["profiles"]) + sight.hidden
        mixed = layers.mix(heads, bias, sight.factor) @ layer["attention_out"]
        x = x + layers.convolve(layer["attention_conv"], none(cfg.dim), mixed)[0]
        normed = layers.rms_norm(x, layer["ffn_norm"])
        added, logits = feed_forward(layer, normed, cfg)
        x = x + layers.convolve(layer["ffn_conv"], none(cfg.dim), added)[0]
        if logits is not None:
            router_logits.append(logits)
    text, user_transcript, hidden = apply_heads(p["heads"], config, x, turns)
    return Outputs(text, user_transcript, hidden, router_logits)


class Ring:
    """Places of positions in the caches of a kind of layers: the first ones, then a ring."""

    def __init__(self, long: bool, config: ModelConfig) -> None:
        """Starts without positions."""
        self.long, self.cfg = long, decoder_config(config)
        self.first = FIRST if long else 0
        window = self.cfg.long_window if long else self.cfg.window
        self.size = window + config.audio_positions
        self.position = torch.full((self.first + self.size,), _NEVER)  # of each slot

    def advance(self, new: Tensor) -> tuple[Tensor, Tensor, Sight]:
        """Takes the next positions int64[t].

        Returns:
          Their slots int64[t]; distances int64[1, 1, t, s] of all slots, cut off at the extent; and
          what the new positions see.
        """
        ring = self.first + (new - self.first) % self.size
        slots = torch.where(new < self.first, new, ring)
        self.position[slots] = new
        extent = self.cfg.relative_extent if self.long else self.cfg.window
        distance = (new[:, None] - self.position).clamp(0, extent)
        return slots, distance[None, None], look(new, self.position, self.long, self.cfg)


class Cache:
    """What a layer keeps of earlier positions: keys, values, and inputs of its convolutions."""

    def __init__(self, layer: Params, sessions: int, slots: int, cfg: TransformerConfig) -> None:
        """Starts without positions."""
        width = layer["kv_conv"].shape[1]
        shape = sessions, width // 2 // cfg.head_dim, slots, cfg.head_dim
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.kv, self.attention, self.ffn = (
            torch.zeros(sessions, layers.TAPS - 1, size) for size in (width, cfg.dim, cfg.dim)
        )
        self.bank = F.pad(layer["profiles"], (0, 1))  # the last column is for larger distances


class Caches:
    """Caches of all layers, of sessions at the same position."""

    def __init__(self, p: Params, sessions: int, config: ModelConfig) -> None:
        """Starts sessions."""
        cfg = decoder_config(config)
        self.position = 0  # the next one
        self.rings = {long: Ring(long, config) for long in (False, True)}
        self.layers = [
            Cache(layer, sessions, len(self.rings[is_long(number, cfg)].position), cfg)
            for number, layer in enumerate(p["layers"])
        ]


def step(
    p: Params, caches: Caches, config: ModelConfig, inputs: Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the next micro-turn; the caches are updated in place.

    Args:
      p: Result of `port_backbone`.
      caches: What the layers keep.
      config: Model configuration.
      inputs: Inputs of that micro-turn, n = 1.

    Returns:
      Text logits [b, 1, v], transcript logits [b, 1, audio_positions, v], and hidden states
      [b, 1, d].
    """
    cfg = decoder_config(config)
    x = embed(p, config, inputs)
    new = torch.arange(caches.position, caches.position + x.shape[1])
    caches.position += len(new)
    places = {long: ring.advance(new) for long, ring in caches.rings.items()}
    for number, (layer, cache) in enumerate(zip(p["layers"], caches.layers, strict=True)):
        slots, distance, sight = places[is_long(number, cfg)]
        normed = layers.rms_norm(x, layer["attention_norm"])
        heads, cache.kv = layers.project(layer, normed, cache.kv, cfg)
        cache.keys[:, :, slots], cache.values[:, :, slots] = heads.k, heads.v
        heads = heads._replace(k=cache.keys, v=cache.values)
        profiles = heads.states @ cache.bank
        bias = profiles.gather(-1, distance.expand(*profiles.shape[:2], -1, -1)) + sight.hidden
        mixed = layers.mix(heads, bias, sight.factor) @ layer["attention_out"]
        mixed, cache.attention = layers.convolve(layer["attention_conv"], cache.attention, mixed)
        x = x + mixed
        normed = layers.rms_norm(x, layer["ffn_norm"])
        added, _ = feed_forward(layer, normed, cfg)
        added, cache.ffn = layers.convolve(layer["ffn_conv"], cache.ffn, added)
        x = x + added
    return apply_heads(p["heads"], config, x, 1)
