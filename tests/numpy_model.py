"""The transformer and the flow head in NumPy and float64, written from the papers, not from JAX.

One session at a time, and positions are a plain list of what exists: there are no masks, no rings
and no batches here; `numpy_decoder` has the layers. Papers: RMSNorm 1910.07467, hMLP 2203.09795,
dMel 2407.15835, flow matching 2210.02747, DiT 2212.09748.
"""

import math
from typing import NamedTuple

import numpy as np

from interaction.config import ModelConfig
from interaction.model.turn_inputs import TurnInputs
from interaction.types import Params, Special
from tests.numpy_decoder import decoder

Array = np.ndarray


def rms_norm(x: Array, scale: Array) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def audio_in(config: ModelConfig, p: Params, user: Array, self_audio: Array, gain: float) -> Array:
    """DMel [frames, m] of both sides in one micro-turn: [audio_positions, d]."""
    found = []
    for mine, own in zip(
        *(np.split(x, config.audio_positions) for x in (user, self_audio)), strict=True
    ):
        mine, own = mine.ravel(), own.ravel()  # all frames of a position in one bag
        channels = np.arange(len(mine))
        bag = p["user_table"][channels, mine].sum(axis=0)
        found.append(bag + gain * p["self_table"][channels, own].sum(axis=0))
    return rms_norm(np.stack(found), p["norm"])


def video_in(p: Params, before: Array, frame: Array) -> Array:
    """Two frames [size, size, 3], patch by patch in rows: [patches, d]."""
    found = []
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    for top in range(0, len(frame), 40):
        for left in range(0, len(frame), 40):
            both = []
            for one in (before, frame):
                x = (one[top : top + 40, left : left + 40] - mean) / std
                for level, stride in enumerate((5, 2, 4)):
                    side = len(x) // stride
                    blocks = [
                        x[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].ravel()
                        for i in range(side)
                        for j in range(side)
                    ]
                    x = np.stack(blocks).reshape(side, side, -1) @ p[f"fold_{level}"]
                    x = exact_gelu(rms_norm(x, p[f"norm_{level}"]))
                both.append(x[0, 0])
            found.append(rms_norm(np.concatenate(both) @ p["fold_3"], p["norm"]))
    return np.stack(found)


class Place(NamedTuple):
    """A position of a session."""

    turn: int
    kind: str  # text, video, audio or out
    x: Array  # [d]


def lay_out(config: ModelConfig, p: Params, inputs: TurnInputs) -> list[Place]:
    """What exists of one session's micro-turns, [n, ...] each, in order."""
    text_in, places = p["text_in"], []

    def embed(token: Array) -> Array:
        return rms_norm(text_in["table"][token], text_in["norm"])

    for turn, last in enumerate(inputs.last):
        if inputs.exists is not None and not inputs.exists[turn]:
            continue
        for token in inputs.text[turn]:
            if token != Special.PAD:
                places.append(Place(turn, "text", embed(token)))
        if inputs.has_frame[turn]:
            for row in video_in(p["video_in"], *inputs.frame[turn]):
                places.append(Place(turn, "video", row))
        sound = inputs.user[turn], inputs.self_audio[turn], inputs.self_audio_gain[turn]
        heard = embed(inputs.user_transcript[turn]) * text_in["transcript_gain"]
        for row in audio_in(config, p["audio_in"], *sound) + heard:
            places.append(Place(turn, "audio", row))
        places.append(Place(turn, "out", embed(last) + text_in["out_slot"]))
    return places


def forward(
    config: ModelConfig, p: Params, bias: Array, inputs: TurnInputs
) -> dict[int, tuple[Array, Array, Array]]:
    """One session: text logits [v], transcript logits [a, v] and hidden state [d] by micro-turn."""
    cfg, places = config.transformer, lay_out(config, p, inputs)
    layers = []
    for index in range(cfg.layers):
        group, member = divmod(index, cfg.long_every)
        long = member == cfg.long_every - 1
        stack, at = (p["long"], (group,)) if long else (p["sliding"], (group, member))
        layers.append({name: leaf[at] for name, leaf in stack.items()})
    x = decoder(cfg, layers, bias, np.stack([place.x for place in places]))
    hidden, found = rms_norm(x, p["heads"]["norm"]), {}
    logits = hidden / cfg.logits_divisor @ p["heads"]["text"]
    for turn in {place.turn for place in places}:
        audio, out = (
            [i for i, at in enumerate(places) if (at.turn, at.kind) == (turn, kind)]
            for kind in ("audio", "out")
        )
        found[turn] = logits[out[0]], logits[audio], hidden[out[0]]
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
