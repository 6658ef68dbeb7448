"""Costs of a model: parameters, FLOPs, bytes, and the least time of a step.

Parameters and bytes are counted from the shapes of the real trees, FLOPs from the config; tests
compare them with traced programs. Times are modelled. `docs/model_cost.md` has every formula.
"""

import functools
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from interaction.compiled.slices import Slice, find_slice
from interaction.config import ModelConfig, SpeechConfig
from interaction.distributed.sharding import cast_params
from interaction.model import session_state
from interaction.model.parameters import init_model_params
from interaction.modules.memory import LONG, SLIDING
from pallas_kernels.chips import CHIPS

LAYER_OVERHEAD = 0.30e-3  # s per layer above the floor, as in today's servers of such models
HBM_SHARE = 0.9  # share of a slice's memory that weights and sessions may take
_TIME_WIDTH = 64  # width of the flow network's time features, see `FlowNet`


class Counts(NamedTuple):
    """Parameters of a model."""

    total: int
    active: int  # all except experts that a token does not choose and tables that are looked up
    by_part: dict[str, int]


# Path of a parameter -> part of the model.
_PARTS = (
    (r"backbone/(sliding|long)/(query|key|value|attention_out|sink|(query|key)_norm)", "attention"),
    (r"backbone/(sliding|long)/(gate|up|down)", "experts"),
    (r"backbone/(sliding|long)/shared_(gate|up|down)", "shared expert"),
    (r"backbone/(sliding|long)/router|router_bias", "router"),
    (r"backbone/(sliding|long)/(attention|ffn)_norm", "norms"),
    (
        r"backbone/text_in/table|backbone/audio_in/(user|self)_table|speech/condition/table",
        "tables",
    ),
    (r"backbone/audio_in/.*", "audio in"),
    (r"backbone/video_in/.*", "video in"),
    (r"backbone/text_in/.*", "text in"),
    (r"backbone/heads/.*", "heads"),
    (r"speech/condition/.*", "speech condition"),
    (r"speech/flow/.*", "speech flow"),
    (r"vocoder/.*", "vocoder"),
)


def _part(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found = [part for pattern, part in _PARTS if re.fullmatch(pattern, name)]
    if not found:
        raise ValueError(f"costs: got {name!r}, which is in no part; add it to _PARTS")
    return found[0]


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return leaf.size * leaf.dtype.itemsize


def _sum_parts(tree: Any, size: Callable[[jax.ShapeDtypeStruct], int]) -> dict[str, int]:  # noqa: ANN401
    parts = {part: 0 for _, part in _PARTS}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts[_part(path)] += size(leaf)
    return parts


@functools.cache
def _abstract_params(config: ModelConfig) -> Any:  # noqa: ANN401
    return jax.eval_shape(lambda: init_model_params(config, jax.random.key(0)))


def parameter_counts(config: ModelConfig) -> Counts:
    """Parameters of a model, from the shapes that its initialisation makes.

    Active parameters are those that a step uses for a token: all except the experts that the router
    does not choose, and the tables, whose rows are looked up and not multiplied.
    """
    cfg = config.transformer
    by_part = _sum_parts(_abstract_params(config), lambda leaf: leaf.size)
    total = sum(by_part.values())
    idle = by_part["experts"] * (cfg.experts - cfg.experts_per_token) // cfg.experts
    return Counts(total, total - idle - by_part["tables"], by_part)


@functools.cache
def _served_params(config: ModelConfig) -> Any:  # noqa: ANN401
    cast = partial(cast_params, dtype=config.transformer.dtype)
    return jax.eval_shape(cast, _abstract_params(config))


def weight_bytes(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights by part, in the dtypes of serving, see `sharding.cast_params`."""
    return _sum_parts(_served_params(config), _bytes)


@functools.cache
def _abstract_state(config: ModelConfig) -> session_state.StreamState:
    keys = jax.ShapeDtypeStruct((1, 2), "uint32")
    return jax.eval_shape(partial(session_state.init_state, config), keys)


def state_bytes(config: ModelConfig) -> int:
    """Bytes of one session's state, which are constant over its length."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(_abstract_state(config)))


def kv_bytes(config: ModelConfig) -> int:
    """Bytes of the keys and values of one position in all layers."""
    cfg = config.transformer
    size = jnp.dtype(cfg.dtype).itemsize
    return 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * size


def turn_positions(config: ModelConfig, text: bool = False, frame: bool = False) -> int:
    """Positions of a micro-turn in the variant with or without text and a frame."""
    return config.audio_positions + 1 + text * config.text_slots + frame * config.patches


def turns_per_second(config: ModelConfig) -> float:
    """Micro-turns per second of audio."""
    return config.audio.sample_rate / config.audio.turn_samples


def backbone_products(
    config: ModelConfig, turns: int, seen: tuple[int, int], text: bool, frame: bool
) -> dict[str, int]:
    """Multiply-adds of the transformer by part.

    Args:
      config: Model configuration.
      turns: Micro-turns of one session.
      seen: Pairs of a query and a key in one sliding layer, and in one long layer.
      text: Whether the variant has text-in positions.
      frame: Whether the variant has positions of a frame.
    """
    cfg, audio = config.transformer, config.audio_positions
    long = cfg.layers // cfg.long_every
    pairs = (cfg.layers - long) * seen[0] + long * seen[1]
    tokens = turns * turn_positions(config, text, frame)
    rows = cfg.layers * tokens * cfg.dim
    width = config.audio.user_frames // audio * config.frame_dim
    return {
        "projections": rows * 2 * (cfg.heads + cfg.kv_heads) * cfg.head_dim,
        "attention": 2 * pairs * cfg.heads * cfg.head_dim,
        "router": rows * cfg.experts,
        "experts": rows * cfg.experts_per_token * 3 * cfg.expert_ffn,
        "shared expert": rows * 3 * cfg.shared_ffn,
        "heads": turns * (audio + 1) * cfg.dim * config.vocab,
        "audio in": turns * audio * (width + cfg.dim) * 2 * cfg.dim,
        "video in": turns * frame * config.patches * _patch_products(cfg.dim),
    }


def _patch_products(dim: int) -> int:
    width = dim // 4  # 64 convolutions of 5x5 pixels, 4 of 4x4 of these, 1 of 2x2
    return 64 * 75 * width + 4 * 16 * width * width + 4 * width * dim


def condition_products(config: ModelConfig) -> int:
    """Multiply-adds of the network that conditions the flow, for one micro-turn."""
    cfg, audio = config.speech, config.audio
    seen = cfg.token_window * cfg.token_dim + cfg.prefix_frames * audio.mels
    made = audio.speech_frames * (cfg.feature_dim + audio.mels)
    hidden = 2 * cfg.condition_layers * cfg.condition_dim
    return cfg.condition_dim * (seen + config.transformer.dim + hidden + made)


def flow_products(cfg: SpeechConfig, frames: int, mels: int) -> int:
    """Multiply-adds of one evaluation of the flow network."""
    mix = 4 * frames * frames * cfg.dim
    feed_forward = frames * 6 * cfg.dim * cfg.dim
    layer = _TIME_WIDTH * 6 * cfg.dim + mix + feed_forward
    ends = frames * (3 * mels + cfg.feature_dim) * cfg.dim
    return cfg.layers * layer + ends + _TIME_WIDTH * _TIME_WIDTH


def _vocoder_products(config: ModelConfig) -> int:
    cfg, audio = config.vocoder, config.audio
    block = 4 * cfg.dim * cfg.dim  # up to twice the width, and down
    ends = cfg.dim * (3 * audio.mels + cfg.pitch_bins + 2 * cfg.order)
    return audio.speech_frames * (cfg.layers * block + ends + audio.mels * cfg.order)


def step_flops_by_part(
    config: ModelConfig, text: bool = False, frame: bool = False
) -> dict[str, int]:
    """FLOPs of the matrix products of a step for one session, by part.

    Args:
      config: Model configuration.
      text: Whether the variant has text-in positions.
      frame: Whether the variant has positions of a frame.
    """
    audio, cfg = config.audio, config.speech
    slots = _ring_slots(config)
    tokens = turn_positions(config, text, frame)
    flow = flow_products(cfg, audio.speech_frames, audio.mels)
    products = {
        **backbone_products(config, 1, (tokens * slots[0], tokens * slots[1]), text, frame),
        "front end": audio.user_frames * (audio.user.n_fft // 2 + 1) * audio.mels,
        "speech condition": condition_products(config),
        "speech flow": cfg.flow_steps * flow,
        "vocoder": _vocoder_products(config),
    }
    return {part: 2 * count for part, count in products.items()}


def step_flops(config: ModelConfig, text: bool = False, frame: bool = False) -> int:
    """FLOPs of a step for one session, see `step_flops_by_part`."""
    return sum(step_flops_by_part(config, text, frame).values())


def _ring_slots(config: ModelConfig) -> tuple[int, int]:
    """Ring slots of a sliding and of a long layer; a step computes scores of all of them."""
    caches = _abstract_state(config).memory.caches
    return caches[SLIDING].k.shape[2], caches[LONG].k.shape[2]


def windowed(tokens: int, window: int) -> int:
    """Pairs of a query and a key that it sees: the last `window`, that of its position included."""
    ramp = min(tokens, window)
    return ramp * (ramp + 1) // 2 + (tokens - ramp) * window


class StepTime(NamedTuple):
    """A modelled step."""

    floor: float  # s, the longer of `hbm` and `flops`
    hbm: float  # s to read weights and state
    flops: float  # s of matrix products at peak FLOP/s
    with_overhead: float  # s, the floor plus LAYER_OVERHEAD for each layer


def step_bytes(
    config: ModelConfig, sessions: int, text: bool = False, frame: bool = False
) -> float:
    """Bytes that a step reads: the weights once, of the experts only those chosen, and all state.

    Tokens are assumed to choose experts evenly and independently. Tables are looked up and do not
    count. The flow network is read once per flow step.
    """
    cfg, parts = config.transformer, weight_bytes(config)
    tokens = sessions * turn_positions(config, text, frame)
    missed = (1 - cfg.experts_per_token / cfg.experts) ** tokens
    again = (config.speech.flow_steps - 1) * parts["speech flow"]
    weights = sum(parts.values()) - parts["tables"] - missed * parts["experts"] + again
    return weights + sessions * state_bytes(config)


def step_time(
    config: ModelConfig, place: Slice, sessions: int, text: bool = False, frame: bool = False
) -> StepTime:
    """Roofline of a step whose bytes and FLOPs are divided evenly over a slice."""
    hbm = step_bytes(config, sessions, text, frame) / (place.chips * place.chip.hbm_bytes_per_s)
    flops = sessions * step_flops(config, text, frame) / (place.chips * place.chip.flops_per_s)
    floor = max(hbm, flops)
    return StepTime(floor, hbm, flops, floor + LAYER_OVERHEAD * config.transformer.layers)


def sessions_that_fit(config: ModelConfig, place: Slice) -> int:
    """Number of sessions whose state fits with the weights into HBM_SHARE of the memory."""
    free = HBM_SHARE * place.hbm_bytes - sum(weight_bytes(config).values())
    return max(int(free // state_bytes(config)), 0)


def serving_slices(config: ModelConfig, sessions: int) -> list[Slice]:
    """Slices for a model and a number of sessions.

    For each kind of TPU these are the smallest power of two that is large enough, twice and four
    times it; for GPUs only the smallest.
    """
    found = []
    for kind in ("v5p", "v6e", "tpu7x", "h200"):
        size = CHIPS[kind].slice_units
        while sessions_that_fit(config, find_slice(f"{kind}-{size}")) < sessions:
            size *= 2
        sizes = (size,) if kind == "h200" else (size, 2 * size, 4 * size)
        found += [find_slice(f"{kind}-{size}") for size in sizes]
    return found
