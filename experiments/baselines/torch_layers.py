"""The model's parts in PyTorch, on plain tensors.

Parameters are those of the library, as a nested dict of tensors; nothing here calls its ops.
Tensors are float32 unless stated otherwise. Axes: b session, n micro-turn, t position, d model,
h query head, g key-value head, k head dimension, r relative state, e expert, f ffn, m mel channel.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interaction.config import AudioConfig, ModelConfig, SpectrumConfig, TransformerConfig

Params = dict  # nested dict of tensors
FLOOR, NORM_EPS = 1e-10, 1e-6  # smallest mel magnitude; addend of a mean square
TAPS = 4  # positions that a short convolution reads


def to_torch(tree: Any) -> Any:  # noqa: ANN401
    """Copies a nested dict of arrays into one of float32 tensors."""
    if isinstance(tree, dict):
        return {name: to_torch(leaf) for name, leaf in tree.items()}
    return torch.tensor(np.asarray(tree, np.float32))


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Root-mean-square normalisation of the last axis (arXiv 1910.07467)."""
    return F.rms_norm(x, (x.shape[-1],), scale, NORM_EPS)


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation (arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def log_mel(pcm: Tensor, filters: Tensor, window: Tensor, spectrum: SpectrumConfig) -> Tensor:
    """Log10 mel magnitude: PCM [b, window - hop + frames * hop] -> [b, frames, m]."""
    frames = pcm.unfold(1, spectrum.window, spectrum.hop) * window
    spectra = torch.fft.rfft(frames, n=spectrum.n_fft)
    magnitude = (spectra.real.square() + spectra.imag.square()).sqrt()  # `abs` is slower
    return (magnitude @ filters).clamp_min(FLOOR).log10()


def dmel_bins(mel: Tensor, cfg: AudioConfig) -> Tensor:
    """Nearest dMel levels: log10 magnitude [..., m] -> int64[..., m]."""
    return ((mel - cfg.bin_low) / cfg.bin_step).round().clamp(0, cfg.bins - 1).long()


def bag(table: Tensor, bins: Tensor) -> Tensor:
    """Bag of embeddings: table [m, bins, w] and int64[..., m] -> [..., w]."""
    mels, levels, width = table.shape
    rows = bins.reshape(-1, mels) + levels * torch.arange(mels)
    return F.embedding_bag(rows, table.view(-1, width), mode="sum").view(*bins.shape[:-1], width)


def audio_in(
    p: Params, user: Tensor, self_audio: Tensor, self_audio_gain: Tensor, positions: int
) -> Tensor:
    """Embeds dMel levels int64[b, n, frames, m] of both sides -> [b, n, positions, d]."""
    shape = (*user.shape[:2], positions, -1)
    x = bag(p["user_table"], user.reshape(shape))
    x = x + bag(p["self_table"], self_audio.reshape(shape)) * self_audio_gain[:, :, None, None]
    return rms_norm(x, p["norm"])


def embed_tokens(p: Params, tokens: Tensor) -> Tensor:
    """Embeds int64[...] tokens -> [..., d]."""
    return rms_norm(F.embedding(tokens, p["table"]), p["norm"])


def convolve(kernel: Tensor, past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Short depthwise convolution, added to its input.

    Args:
      kernel: [TAPS, c]; the last row weighs the position itself.
      past: [b, TAPS - 1, c], the positions before x.
      x: [b, t, c].

    Returns:
      [b, t, c], and the last TAPS - 1 positions.
    """
    joined, t = torch.cat([past, x], dim=1), x.shape[1]
    for tap in range(TAPS):
        x = torch.addcmul(x, joined[:, tap : tap + t], kernel[tap])
    return x, joined[:, t:]


class Projected(NamedTuple):
    """What attention needs of t positions."""

    q: Tensor  # [b, h, t, k], divided by k
    states: Tensor  # [b, h, t, r], which mix the profiles of distance
    k: Tensor  # [b, g, t, k]
    v: Tensor  # [b, g, t, k]


def project(p: Params, x: Tensor, past: Tensor, cfg: TransformerConfig) -> tuple[Projected, Tensor]:
    """Projects the normalised x [b, t, d]; also returns the last rows that the convolution reads.

    Args:
      p: Parameters of the layer.
      x: [b, t, d].
      past: [b, TAPS - 1, 2 * g * k], keys and values before them and before the convolution.
      cfg: Configuration of the transformer.
    """
    heads, dim, r = cfg.heads, cfg.head_dim, cfg.relative_states
    width = p["kv_conv"].shape[1]
    q, states, kv = (x @ p["attention_in"]).split([heads * dim, heads * r, width], dim=-1)
    kv, past = convolve(p["kv_conv"], past, kv)
    k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in kv.chunk(2, dim=-1))
    q = rms_norm(q.unflatten(-1, (heads, dim)), p["query_norm"] / dim).transpose(1, 2)
    states = states.unflatten(-1, (heads, r)).transpose(1, 2)
    return Projected(q, states, rms_norm(k, p["key_norm"]), v), past


def relative_bias(states: Tensor, bank: Tensor) -> Tensor:
    """Bias by distance of a session's positions among themselves.

    Args:
      states: [b, h, t, r].
      bank: [r, extent], profiles over the distances from 0 on; beyond the extent they are 0.

    Returns:
      [b, h, t, t]; unspecified where the key comes after the query.
    """
    t = states.shape[2]
    bank = F.pad(bank, (0, t - bank.shape[1]))  # a negative width cuts off
    profiles = states @ bank.flip(1)  # column j is distance t - 1 - j
    # Each row moves left by one column less than the one above it (arXiv 1901.02860, appendix B).
    b, heads = profiles.shape[:2]
    return F.pad(profiles, (1, 0)).view(b, heads, t + 1, t)[:, :, 1:]


def mix(heads: Projected, bias: Tensor, factor: Tensor | None) -> Tensor:
    """Attention with a bias.

    Args:
      heads: Queries of t positions, and keys and values of s positions.
      bias: [b, h, t, s], -inf where a query does not see a key.
      factor: [t, 1], multiplies the scores; None: 1.

    Returns:
      [b, t, h * k].
    """
    q, _, k, v = heads
    b, h, t, dim = q.shape
    group = (b, k.shape[1], -1)
    # Query heads that share a key head are rows of one product.
    scores = (q.reshape(*group, dim) @ k.transpose(2, 3)).view(bias.shape) + bias
    weights = (scores if factor is None else scores * factor).softmax(-1)
    mixed = weights.to(v.dtype).view(*group, k.shape[2]) @ v
    return mixed.view(b, h, t, dim).transpose(1, 2).flatten(2)


class Routing(NamedTuple):
    """Which experts take t tokens. The weights of a token sum to a learned scale."""

    chosen: Tensor  # int64[t, per_token]
    weights: Tensor  # [t, per_token], of the chosen experts
    shared: Tensor  # [t, shared], weights of the shared experts
    logits: Tensor  # [t, e], of the routed experts


def route(p: Params, x: Tensor, bias: Tensor, cfg: TransformerConfig) -> Routing:
    """Router of [t, d], in float32: sigmoid scores, divided by the sum of those that count."""
    with torch.autocast(x.device.type, enabled=False):
        logits = x.float() @ p["router"]
    routed, shared = logits.sigmoid().tensor_split([cfg.experts], dim=-1)
    chosen = (routed + bias).topk(cfg.experts_per_token, dim=-1).indices
    scores = torch.cat([routed.gather(-1, chosen), shared], dim=-1)
    scores = scores * (cfg.route_scale * p["ffn_scale"] / scores.sum(-1, keepdim=True))
    weights, shared = scores.tensor_split([cfg.experts_per_token], dim=-1)
    return Routing(chosen, weights, shared, logits[:, : cfg.experts])


def experts(p: Params, x: Tensor, routing: Routing, cfg: TransformerConfig) -> Tensor:
    """Mixture of experts [t, d]; every expert runs on every token, in two products.

    This is the faster way for few tokens, and on a GPU, where it needs no dynamic shapes.
    """
    weights = x.new_zeros(len(x), cfg.experts).scatter(-1, routing.chosen, routing.weights)
    weights = torch.cat([weights, routing.shared], dim=-1)
    return _weighted_sum(p["gate_up"], p["down"], x, weights)


def sorted_experts(p: Params, x: Tensor, routing: Routing, cfg: TransformerConfig) -> Tensor:
    """`experts` for many tokens: each routed expert runs on its own tokens."""
    width, count = cfg.expert_ffn, cfg.experts_per_token
    widths = [*[width] * cfg.experts, cfg.shared_experts * width]
    *gate_up, shared_in = p["gate_up"].split([2 * one for one in widths], dim=1)
    *down, shared_out = p["down"].split(widths)
    chosen = routing.chosen.flatten()
    order = chosen.argsort()
    sizes = chosen.bincount(minlength=cfg.experts).tolist()
    rows = x[order // count].split(sizes)
    made = [_swiglu(*one) for one in zip(rows, gate_up, down, strict=True)]
    routed = torch.cat(made) * routing.weights.flatten()[order, None]
    shared = _weighted_sum(shared_in, shared_out, x, routing.shared)
    return shared.index_add(0, order // count, routed)


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down


def _weighted_sum(gate_up: Tensor, down: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """The sum of experts [t, d] with weights [t, e], from [d, e * 2 * f] and [e * f, d]."""
    gate, up = (x @ gate_up).unflatten(-1, (weights.shape[1], -1)).chunk(2, dim=-1)
    hidden = F.silu(gate) * up * weights[..., None]
    return hidden.flatten(1).to(x.dtype) @ down


def dense_ffn(p: Params, x: Tensor) -> Tensor:
    """Feed-forward [..., d] of a dense layer."""
    return _swiglu(x, p["gate_up"], p["down"]) * p["ffn_scale"]


def time_features(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of flow times [b] -> [b, width]."""
    phase = time[:, None] * torch.linspace(0.0, math.log(200.0), width // 2).exp()
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def speech_condition(
    p: Params, hidden: Tensor, tokens: Tensor, prefix: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """Features and a first guess of the frames of a micro-turn.

    Args:
      p: Parameters of `SpeechCondition`.
      hidden: [b, d], hidden states of the backbone.
      tokens: int64[b, token_window], the last spoken tokens.
      prefix: [b, prefix_frames, m], standardised mel before the micro-turn.
      frames: Frames of a micro-turn.

    Returns:
      [b, frames, feature_dim] and [b, frames, m].
    """
    said = F.embedding(tokens, p["table"]).flatten(1)
    x = said @ p["tokens_in"] + prefix.flatten(1) @ p["prefix_in"] + hidden @ p["hidden_in"]
    x = F.silu(x + p["bias_in"])
    for layer in range(sum(name.startswith("norm_") for name in p)):
        normed = rms_norm(x, p[f"norm_{layer}"])
        x = x + F.silu(normed @ p[f"up_{layer}"]) @ p[f"down_{layer}"]
    x = rms_norm(x, p["norm"])
    return tuple((x @ p[name]).unflatten(1, (frames, -1)) for name in ("features", "guess"))


def flow_estimate(
    p: Params, point: Tensor, time: Tensor, features: Tensor, guess: Tensor, cfg: ModelConfig
) -> Tensor:
    """Predicts the standardised mel [b, frames, m] at the end of the flow.

    Args:
      p: Parameters of `FlowNet`.
      point: [b, frames, m], point of the flow.
      time: [b], its time in [0, 1].
      features: [b, frames, feature_dim], from `speech_condition`.
      guess: [b, frames, m], from `speech_condition`.
      cfg: Model configuration.
    """
    x = torch.cat([point, guess, features], dim=-1) @ p["in"] + p["position"]
    clock = F.silu(time_features(time, p["time_in"].shape[0]) @ p["time_in"])
    for layer in range(cfg.speech.layers):
        adapt = clock @ p[f"adapt_{layer}"].flatten(1)
        shift, scale, gate, shift2, scale2, gate2 = adapt[:, None].chunk(6, dim=-1)
        normed = rms_norm(x, p[f"mix_norm_{layer}"]) * (1 + scale) + shift
        mixed = p[f"mix_out_{layer}"].T @ gelu(p[f"mix_in_{layer}"].T @ normed)
        x = x + (1 + gate) * mixed
        normed = rms_norm(x, p[f"norm_{layer}"]) * (1 + scale2) + shift2
        x = x + (1 + gate2) * (gelu(normed @ p[f"up_{layer}"]) @ p[f"down_{layer}"])
    return guess + rms_norm(x, p["norm"]) @ p["out"]
