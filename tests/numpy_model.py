"""The transformer and the flow head in NumPy and float64, written from the papers, not from JAX.

One session at a time, and positions are a plain list of what exists: there are no masks, no rings
and no batches here. Papers: RoPE 2104.09864, grouped queries 2305.13245, attention sinks 2309.17453
with a learned logit, SwiGLU 2002.05202, routing of DeepSeek-V3 2412.19437, RMSNorm 1910.07467, hMLP
2203.09795, dMel 2407.15835, flow matching 2210.02747, DiT 2212.09748.
"""

from typing import NamedTuple

import numpy as np

from interaction.config import ModelConfig, TransformerConfig
from interaction.model.turn_inputs import TurnInputs
from interaction.types import Params, Special

Array = np.ndarray


def rms_norm(x: Array, scale: Array) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    return (silu(x @ gate) * (x @ up)) @ down


def rotate(x: Array, time: int, base: float) -> Array:
    """Pair (i, i + k/2) of each head [h, k] as a complex number, turned by time * base^(-2i/k)."""
    half = x.shape[-1] // 2
    angle = time * base ** (-np.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attention(q: Array, k: Array, v: Array, sink: Array, window: int) -> Array:
    """Each of [t, h, k] over the last `window` of [t, g, k], its own included: [t, h * k]."""
    t, heads, dim = q.shape
    group = heads // k.shape[1]
    out = np.zeros_like(q)
    for i in range(t):
        seen = slice(max(0, i - window + 1), i + 1)
        for head in range(heads):
            scores = k[seen, head // group] @ q[i, head] / np.sqrt(dim)
            weights = np.exp(scores)
            total = np.exp(sink[head]) + weights.sum()
            out[i, head] = weights @ v[seen, head // group] / total
    return out.reshape(t, -1)


def route(logits: Array, bias: Array, top_k: int) -> list[tuple[int, float]]:
    """Experts of one token in ascending order, and their weights."""
    scores = 1 / (1 + np.exp(-logits))
    best = sorted(range(len(scores)), key=lambda e: (-(scores[e] + bias[e]), e))[:top_k]
    total = sum(scores[e] for e in best)
    return [(e, scores[e] / total) for e in sorted(best)]


def layer(
    cfg: TransformerConfig, p: Params, bias: Array, x: Array, time: list[int], window: int
) -> Array:
    """One layer on the positions [t, d] of a session."""
    normed, heads = rms_norm(x, p["attention_norm"]), (len(x), -1, cfg.head_dim)
    q = rms_norm((normed @ p["query"]).reshape(heads), p["query_norm"])
    k = rms_norm((normed @ p["key"]).reshape(heads), p["key_norm"])
    v = (normed @ p["value"]).reshape(heads)
    q, k = (
        np.stack([rotate(row, at, cfg.rope_base) for row, at in zip(y, time, strict=True)])
        for y in (q, k)
    )
    x = x + attention(q, k, v, p["sink"], window) @ p["attention_out"]
    normed = rms_norm(x, p["ffn_norm"])
    out = x + swiglu(normed, p["shared_gate"], p["shared_up"], p["shared_down"])
    for i, token in enumerate(normed):
        for e, weight in route(token @ p["router"], bias, cfg.experts_per_token):
            out[i] += weight * swiglu(token, p["gate"][e], p["up"][e], p["down"][e])
    return out


def audio_in(config: ModelConfig, p: Params, user: Array, self_audio: Array, gain: float) -> Array:
    """DMel [frames, m] of both sides in one micro-turn: [audio_positions, d]."""
    channels = np.arange(config.audio.mels)
    bags = [
        p["user_table"][channels, mine].sum(axis=0)
        + gain * p["self_table"][channels, own].sum(axis=0)
        for mine, own in zip(user, self_audio, strict=True)
    ]
    patches = np.stack(bags).reshape(config.audio_positions, -1)
    return gelu(rms_norm(patches, p["norm"]) @ p["hidden"]) @ p["out"] + p["position"]


def video_in(p: Params, frame: Array) -> Array:
    """A frame [size, size, 3], patch by patch in rows: [patches, d]."""
    found = []
    for top in range(0, len(frame), 40):
        for left in range(0, len(frame), 40):
            x = frame[top : top + 40, left : left + 40] - 0.5
            for level, stride in enumerate((5, 4, 2)):
                side = len(x) // stride
                blocks = [
                    x[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].ravel()
                    for i in range(side)
                    for j in range(side)
                ]
                x = np.stack(blocks).reshape(side, side, -1) @ p[f"fold_{level}"]
                if level < 2:
                    x = gelu(rms_norm(x, p[f"norm_{level}"]))
            found.append(x[0, 0])
    return np.stack(found) + p["position"]


class Place(NamedTuple):
    """A position of a session."""

    turn: int
    kind: str  # text, video, audio or out
    time: int
    x: Array  # [d]


def lay_out(config: ModelConfig, p: Params, inputs: TurnInputs) -> list[Place]:
    """What exists of one session's micro-turns, [n, ...] each, in order."""
    table, places = p["text_in"]["table"], []
    for turn, last in enumerate(inputs.last):
        if inputs.exists is not None and not inputs.exists[turn]:
            continue
        time = turn * (config.text_slots + config.patches + config.audio_positions + 1)
        for slot, token in enumerate(inputs.text[turn]):
            if token != Special.PAD:
                row = table[token] + p["text_in"]["slot"][slot]
                places.append(Place(turn, "text", time + slot, row))
        time += config.text_slots
        if inputs.has_frame[turn]:
            for i, row in enumerate(video_in(p["video_in"], inputs.frame[turn])):
                places.append(Place(turn, "video", time + i, row))
        time += config.patches
        sound = inputs.user[turn], inputs.self_audio[turn], inputs.self_audio_gain[turn]
        heard = table[inputs.user_transcript[turn]]
        for i, row in enumerate(audio_in(config, p["audio_in"], *sound) + heard):
            places.append(Place(turn, "audio", time + i, row))
        row = table[last] + p["text_in"]["out_slot"]
        places.append(Place(turn, "out", time + config.audio_positions, row))
    return places


def forward(
    config: ModelConfig, p: Params, bias: Array, inputs: TurnInputs
) -> dict[int, tuple[Array, Array, Array]]:
    """One session: text logits [v], transcript logits [a, v] and hidden state [d] by micro-turn."""
    cfg, places = config.transformer, lay_out(config, p, inputs)
    x, time = np.stack([place.x for place in places]), [place.time for place in places]
    for index in range(cfg.layers):
        group, member = divmod(index, cfg.long_every)
        if member < cfg.long_every - 1:
            params = {name: leaf[group, member] for name, leaf in p["sliding"].items()}
            x = layer(cfg, params, bias[index], x, time, cfg.window)
        else:
            params = {name: leaf[group] for name, leaf in p["long"].items()}
            x = layer(cfg, params, bias[index], x, time, cfg.long_window)
    normed, found = rms_norm(x, p["heads"]["norm"]), {}
    for turn in {place.turn for place in places}:
        audio, out = (
            normed[[i for i, at in enumerate(places) if (at.turn, at.kind) == (turn, kind)]]
            for kind in ("audio", "out")
        )
        found[turn] = (
            out[0] @ p["heads"]["text"],
            audio @ p["heads"]["transcript"],
            out[0],
        )
    return found


def speech_condition(
    config: ModelConfig, p: Params, hidden: Array, tokens: Array, prefix: Array
) -> tuple[Array, Array]:
    """Features [frames, feature_dim] and the first guess [frames, m] of one micro-turn.

    hidden is [d], tokens are int[token_window], prefix [prefix_frames, m] is standardised.
    """
    frames = config.audio.speech_frames
    x = p["table"][tokens].ravel() @ p["tokens_in"] + prefix.ravel() @ p["prefix_in"]
    x = silu(x + hidden @ p["hidden_in"] + p["bias_in"])
    for i in range(config.speech.condition_layers):
        x = x + silu(rms_norm(x, p[f"norm_{i}"]) @ p[f"up_{i}"]) @ p[f"down_{i}"]
    x = rms_norm(x, p["norm"])
    return (x @ p["features"]).reshape(frames, -1), (x @ p["guess"]).reshape(frames, -1)


def flow_estimate(
    config: ModelConfig, p: Params, point: Array, time: float, features: Array, guess: Array
) -> Array:
    """Where the path through `point` [frames, m] at `time` ends, [frames, m]."""
    x = np.concatenate([point, guess, features], axis=-1) @ p["in"] + p["position"]
    phase = time * np.exp(np.linspace(0, np.log(200), 32))
    clock = silu(np.concatenate([np.sin(phase), np.cos(phase)]) @ p["time_in"])
    for i in range(config.speech.layers):
        shift, scale, gate, shift2, scale2, gate2 = np.tensordot(clock, p[f"adapt_{i}"], axes=1)
        normed = rms_norm(x, p[f"mix_norm_{i}"]) * (1 + scale) + shift
        mixed = p[f"mix_out_{i}"].T @ gelu(p[f"mix_in_{i}"].T @ normed)  # along the frames
        x = x + (1 + gate) * mixed
        normed = rms_norm(x, p[f"norm_{i}"]) * (1 + scale2) + shift2
        x = x + (1 + gate2) * (gelu(normed @ p[f"up_{i}"]) @ p[f"down_{i}"])
    return guess + rms_norm(x, p["norm"]) @ p["out"]


def generate_mel(
    config: ModelConfig, p: Params, hidden: Array, tokens: Array, prefix: Array, noise: Array
) -> Array:
    """Log10 mel [frames, m] of one micro-turn: Euler steps from scaled noise to the mel."""
    cfg = config.speech
    before = (np.maximum(prefix, cfg.mel_floor) - cfg.mel_mean) / cfg.mel_std
    features, guess = speech_condition(config, p["condition"], hidden, tokens, before)
    point = cfg.temperature * noise
    for i in range(cfg.flow_steps):
        time = i / cfg.flow_steps
        end = flow_estimate(config, p["flow"], point, time, features, guess)
        point = point + (end - point) / (1 - time) / cfg.flow_steps
    return np.maximum(point * cfg.mel_std + cfg.mel_mean, cfg.mel_floor)
