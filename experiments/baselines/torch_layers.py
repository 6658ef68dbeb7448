"""The model's parts in PyTorch, on plain tensors.

Parameters are those of a released model, as a nested dict of tensors. Nothing here calls the
library's ops. Tensors are float32 unless stated otherwise. Axes: b session, n micro-turn,
t position, d model, h query head, g key-value head, k head dimension, e expert, f ffn, m mel
channel.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interaction.config import AudioConfig, ModelConfig, TransformerConfig

Params = dict  # nested dict of tensors
FLOOR, NORM_EPS = 1e-10, 1e-6  # smallest mel magnitude; addend of a mean square


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


def log_mel(pcm: Tensor, filters: Tensor, window: Tensor, hop: int, cfg: AudioConfig) -> Tensor:
    """Log10 mel magnitude: PCM [b, window - hop + frames * hop] -> [b, frames, m]."""
    frames = pcm.unfold(1, cfg.window, hop) * window
    magnitude = torch.fft.rfft(frames, n=cfg.n_fft).abs()
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
    p: Params, user: Tensor, self_audio: Tensor, self_audio_gain: Tensor, cfg: ModelConfig
) -> Tensor:
    """Embeds dMel levels int64[b, n, frames, m] of both sides -> [b, n, audio_positions, d]."""
    frames = bag(p["user_table"], user)
    frames = frames + bag(p["self_table"], self_audio) * self_audio_gain[:, :, None, None]
    patch = frames.reshape(*frames.shape[:2], cfg.audio_positions, -1)
    hidden = gelu(rms_norm(patch, p["norm"]) @ p["hidden"])
    return hidden @ p["out"] + p["position"]


def rope(position: Tensor, cfg: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions int64[t] -> [t, 1, k / 2] each."""
    pair = torch.arange(0, cfg.head_dim, 2, dtype=torch.float64)
    angle = position[:, None, None] * cfg.rope_base ** (-pair / cfg.head_dim)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (i, i + k/2) of [b, t, heads, k] (RoPE, arXiv 2104.09864)."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def qkv(
    p: Params, x: Tensor, turn: tuple[Tensor, Tensor], cfg: TransformerConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [b, t, h, k], keys and values [b, t, g, k] of the normalised x [b, t, d]."""
    split = (*x.shape[:2], -1, cfg.head_dim)
    q = rms_norm((x @ p["query"]).view(split), p["query_norm"])
    k = rms_norm((x @ p["key"]).view(split), p["key_norm"])
    return rotate(q, turn), rotate(k, turn), (x @ p["value"]).view(split)


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    """Attention with one learned logit per head in the denominator.

    An additional key with value zero gives that logit: it is one in an added coordinate, in which
    queries hold the logit of their head, and zero elsewhere. So the fused kernel can be used.

    Args:
      q: [b, t, h, k].
      k: [b, s, g, k].
      v: [b, s, g, k].
      seen: bool[t, s], the keys that each query sees.
      sink: [h].

    Returns:
      [b, t, h * k].
    """
    b, t, heads, dim = q.shape
    q = torch.cat([q, (sink * dim**0.5).view(1, 1, heads, 1).expand(b, t, heads, 1)], dim=-1)
    one = F.pad(k.new_ones(b, 1, k.shape[2], 1), (dim, 0))
    k = torch.cat([F.pad(k, (0, 1)), one], dim=1)
    v = F.pad(v, (0, 1, 0, 0, 0, 1))
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=F.pad(seen, (0, 1), value=True),
        scale=dim**-0.5,
        enable_gqa=True,
    )
    return mixed[..., :dim].transpose(1, 2).reshape(b, t, heads * dim)


def attention_step(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    """`attention` of a few queries as plain products, which are faster here."""
    b, t, heads, dim = q.shape
    group = heads // k.shape[2]
    # Query heads that share a key head are rows of one product.
    rows = (q * dim**-0.5).view(b, t, -1, group, dim).permute(0, 2, 3, 1, 4)
    scores = rows.reshape(b, -1, group * t, dim) @ k.permute(0, 2, 3, 1)
    scores = scores.view(b, heads, t, -1).masked_fill(~seen, -math.inf)
    column = sink.view(1, heads, 1, 1).expand(b, heads, t, 1)
    weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    mixed = weights.reshape(b, -1, group * t, k.shape[1]) @ v.transpose(1, 2)
    return mixed.view(b, heads, t, dim).transpose(1, 2).reshape(b, t, heads * dim)


def experts(p: Params, x: Tensor, bias: Tensor, cfg: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Mixture of experts with a shared expert; every expert runs on every token.

    The gate, up and down matrices of all experts are joined, [d, e * f] and [e * f, d], so that
    each of the three is one product.

    Returns:
      [t, d] and the router's logits [t, e].
    """
    logits = x @ p["router"]
    scores = logits.float().sigmoid()
    chosen = (scores + bias).topk(cfg.experts_per_token, dim=-1).indices
    kept = scores.gather(-1, chosen)
    weights = torch.zeros_like(scores).scatter(-1, chosen, kept / kept.sum(-1, keepdim=True))
    hidden = F.silu(x @ p["gate"]) * (x @ p["up"])
    hidden = hidden.view(-1, cfg.experts, cfg.expert_ffn) * weights[..., None]
    shared = (F.silu(x @ p["shared_gate"]) * (x @ p["shared_up"])) @ p["shared_down"]
    return hidden.flatten(1) @ p["down"] + shared, logits


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
