"""The Inkling decoder in NumPy, float64, one position and expert after another.

Written from the description of the released architecture, not from the code under test.
"""

import numpy as np

from interaction.config import TransformerConfig

FIRST = 16  # positions that long layers see for ever


def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """RMS norm of the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each position plus the weighted sum of it and the three before it."""
    out = x.copy()
    for i in range(len(x)):
        for back in range(4):
            if i - back >= 0:
                out[i] += x[i - back] * kernel[3 - back]
    return out


def attention(cfg: TransformerConfig, p: dict, x: np.ndarray, long: bool) -> np.ndarray:
    """Attention of one session, float64[t, d]."""
    kv_heads = cfg.kv_heads if long else cfg.sliding_kv_heads
    window = cfg.long_window if long else cfg.window
    q = norm((x @ p["query"]).reshape(len(x), cfg.heads, -1), p["query_norm"])
    k = convolve(x @ p["key"], p["key_conv"]).reshape(len(x), kv_heads, -1)
    v = convolve(x @ p["value"], p["value_conv"]).reshape(len(x), kv_heads, -1)
    k = norm(k, p["key_norm"])
    states = (x @ p["relative"]).reshape(len(x), cfg.heads, -1)
    out = np.zeros((len(x), cfg.heads, cfg.head_dim))
    for i, h in np.ndindex(len(x), cfg.heads):
        g = h // (cfg.heads // kv_heads)
        profile = states[i, h] @ p["profiles"]
        seen = [j for j in range(i + 1) if i - j < window or (long and j < FIRST)]
        bias = [profile[i - j] if i - j < len(profile) else 0.0 for j in seen]
        scores = k[seen, g] @ q[i, h] / cfg.head_dim + bias
        if long:
            scores *= 1 + 0.1 * np.log(max(len(seen) / cfg.log_scaling_from, 1.0))
        weights = np.exp(scores - scores.max())
        out[i, h] = weights / weights.sum() @ v[seen, g]
    return out.reshape(len(x), -1) @ p["attention_out"]


def experts(cfg: TransformerConfig, p: dict, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Routed and shared experts of each position."""
    out = np.zeros_like(x)
    for i, token in enumerate(x):
        scores = 1 / (1 + np.exp(-(token @ p["router"])))
        chosen = np.argsort(-(scores[: cfg.experts] + bias))[: cfg.experts_per_token]
        both = [*chosen, *range(cfg.experts, cfg.experts + cfg.shared_experts)]
        weights = scores[both] / scores[both].sum() * cfg.route_scale * p["ffn_scale"]
        for weight, e in zip(weights, both, strict=True):
            if e < cfg.experts:
                gate, up, down = p["gate"][e], p["up"][e], p["down"][e]
            else:
                place = slice(
                    (e - cfg.experts) * cfg.expert_ffn, (e - cfg.experts + 1) * cfg.expert_ffn
                )
                gate, up = p["shared_gate"][:, place], p["shared_up"][:, place]
                down = p["shared_down"][place]
            out[i] += weight * ((silu(token @ gate) * (token @ up)) @ down)
    return out


def layer(
    cfg: TransformerConfig, p: dict, bias: np.ndarray, x: np.ndarray, long: bool
) -> np.ndarray:
    """One layer of one session, float64[t, d]; dense if its parameters are."""
    mixed = attention(cfg, p, norm(x, p["attention_norm"]), long)
    x = x + convolve(mixed, p["attention_conv"])
    normed = norm(x, p["ffn_norm"])
    if "dense_gate" in p:
        out = (silu(normed @ p["dense_gate"]) * (normed @ p["dense_up"])) @ p["dense_down"]
        out *= p["ffn_scale"]
    else:
        out = experts(cfg, p, bias, normed)
    return x + convolve(out, p["ffn_conv"])


def decoder(
    cfg: TransformerConfig, layers: list[dict], bias: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """All layers of one session, float64[t, d].

    Args:
      cfg: Configuration of the decoder.
      layers: Parameters of each layer.
      bias: [l, e].
      x: float64[t, d].
    """
    for i, p in enumerate(layers):
        x = layer(cfg, p, bias[i], x, (i + 1) % cfg.long_every == 0)
    return x
