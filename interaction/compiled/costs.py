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
from interaction.model.layer_stacks import kinds
from interaction.model.parameters import init_model_params
from interaction.ops.block_attention import key_block
from pallas_kernels.chips import CHIPS

LAYER_OVERHEAD = 0.30e-3  # s per layer above the floor, as in today's servers of such models
HBM_SHARE = 0.9  # share of a slice's memory that weights and sessions may take
_TIME_WIDTH = 64  # width of the flow network's time features, see `FlowNet`


class Counts(NamedTuple):
    """Parameters of a model."""

    total: int
    active: int  # those that a text-out token uses, see `parameter_counts`
    by_part: dict[str, int]  # those of INKLING_PARTS, then those of ADDED_PARTS


_LAYER = r"backbone/(first_)?(dense|sliding|long)"
# Path of a parameter -> part of the model; of a released Inkling model, and what is added to it.
INKLING_PARTS = (
    (rf"{_LAYER}/(query|key|value|relative|profiles|attention_out|(query|key)_norm)", "attention"),
    (rf"{_LAYER}/(key|value|attention|ffn)_conv", "short convolutions"),
    (rf"{_LAYER}/dense_(gate|up|down)", "dense layers"),
    (rf"{_LAYER}/(gate|up|down)", "experts"),
    (rf"{_LAYER}/shared_(gate|up|down)", "shared experts"),
    (rf"{_LAYER}/router", "router"),
    (rf"{_LAYER}/((attention|ffn)_norm|ffn_scale)", "norms and scales"),
    (r"backbone/(text_in|audio_in|heads)/norm", "norms and scales"),
    (r"backbone/text_in/table", "token table"),
    (r"backbone/audio_in/user_table", "audio table"),
    (r"backbone/video_in/.*", "video in"),
    (r"backbone/heads/text", "text head"),
)
ADDED_PARTS = (
    (r"backbone/audio_in/self_table", "own audio table"),
    (r"backbone/text_in/(transcript_gain|out_slot)", "text streams"),
    (r"router_bias", "selection bias"),  # no parameter of a released model: a buffer
    (r"speech/condition/table", "speech table"),
    (r"speech/condition/.*", "speech condition"),
    (r"speech/flow/.*", "speech flow"),
    (r"vocoder/.*", "vocoder"),
)
_PARTS = (*INKLING_PARTS, *ADDED_PARTS)
_UNUSED = ("audio table", "own audio table", "speech table", "video in")  # by a text-out token
_LOOKED_UP = ("token table", "audio table", "own audio table", "speech table")


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

    Active parameters are those that a text-out token uses: all except the experts that the router
    does not choose, the inputs of audio and video, and the table of the speech head, of which few
    rows are looked up. As in the released models' figures, the table of tokens counts in full.
    """
    by_part = _sum_parts(_abstract_params(config), lambda leaf: leaf.size)
    return _counts(config, by_part)


def inkling_counts(config: ModelConfig) -> Counts:
    """The parameters of a model without the parts that are added to a released Inkling model."""
    names = {part for _, part in INKLING_PARTS}
    counted = parameter_counts(config).by_part
    return _counts(config, {part: count for part, count in counted.items() if part in names})


def _counts(config: ModelConfig, by_part: dict[str, int]) -> Counts:
    cfg, total = config.transformer, sum(by_part.values())
    idle = by_part["experts"] * (cfg.experts - cfg.experts_per_token) // cfg.experts
    return Counts(total, total - idle - sum(by_part.get(part, 0) for part in _UNUSED), by_part)


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
    cfg = config.decoder
    heads = sum(kind.layers * kind.kv_heads for kind in kinds(cfg).values())
    return 2 * heads * cfg.head_dim * jnp.dtype(cfg.dtype).itemsize


def turn_positions(config: ModelConfig, text: bool = False, frame: bool = False) -> int:
    """Positions of a micro-turn in the variant with or without text and a frame."""
    return config.audio_positions + 1 + text * config.text_slots + frame * config.patches


def turns_per_second(config: ModelConfig) -> float:
    """Micro-turns per second of audio."""
    return config.audio.sample_rate / config.audio.turn_samples


class Seen(NamedTuple):
    """What attention multiplies in one layer."""

    pairs: int  # pairs of a query and a key
    biased: int  # pairs of a query and a distance whose bias is computed


def backbone_products(
    config: ModelConfig, turns: int, seen: dict[str, Seen], text: bool, frame: bool
) -> dict[str, int]:
    """Multiply-adds of the transformer by part.

    Args:
      config: Model configuration.
      turns: Micro-turns of one session.
      seen: What attention multiplies in a layer of each kind, see `decoder.kinds`.
      text: Whether the variant has text-in positions.
      frame: Whether the variant has positions of a frame.
    """
    cfg, found = config.decoder, kinds(config.decoder)
    tokens = turns * turn_positions(config, text, frame)
    kv_heads = sum(kind.layers * kind.kv_heads for kind in found.values())
    width = 2 * (cfg.layers * cfg.heads + kv_heads) * cfg.head_dim
    pairs = sum(kind.layers * seen[name].pairs for name, kind in found.items())
    biased = sum(kind.layers * seen[name].biased for name, kind in found.items())
    mixed = (cfg.layers - cfg.dense_layers) * tokens * cfg.dim
    return {
        "projections": tokens * cfg.dim * (width + cfg.layers * cfg.heads * cfg.relative_states),
        "attention": 2 * pairs * cfg.heads * cfg.head_dim,
        "relative bias": biased * cfg.heads * cfg.relative_states,
        "dense layers": cfg.dense_layers * tokens * cfg.dim * 3 * cfg.dense_ffn,
        "router": mixed * (cfg.experts + cfg.shared_experts),
        "experts": mixed * cfg.experts_per_token * 3 * cfg.expert_ffn,
        "shared experts": mixed * cfg.shared_experts * 3 * cfg.expert_ffn,
        "text head": turns * (config.audio_positions + 1) * cfg.dim * config.vocab,
        "video in": turns * frame * config.patches * _patch_products(config),
    }


def _patch_products(config: ModelConfig) -> int:
    first, second, third = config.vision_widths
    # 64 folds of 5x5 pixels, 16 of 2x2 of these, 1 of 4x4 of these; then both frames.
    one = 64 * 75 * first + 16 * 4 * first * second + 16 * second * third
    return 2 * one + 2 * third * config.transformer.dim


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
    tokens = turn_positions(config, text, frame)
    flow = flow_products(cfg, audio.speech_frames, audio.mels)
    products = {
        **backbone_products(config, 1, _seen_in_step(config, tokens), text, frame),
        "front end": audio.user_frames * (audio.user.n_fft // 2 + 1) * audio.mels,
        "speech condition": condition_products(config),
        "speech flow": cfg.flow_steps * flow,
        "vocoder": _vocoder_products(config),
    }
    return {part: 2 * count for part, count in products.items()}


def step_flops(config: ModelConfig, text: bool = False, frame: bool = False) -> int:
    """FLOPs of a step for one session, see `step_flops_by_part`."""
    return sum(step_flops_by_part(config, text, frame).values())


def _seen_in_step(config: ModelConfig, tokens: int) -> dict[str, Seen]:
    """What a step multiplies: all blocks of a ring, and in long layers one of the first keys."""
    caches, seen = _abstract_state(config).memory.caches, {}
    for name, kind in kinds(config.decoder).items():
        block = key_block(kind.sight.window)
        blocks = caches[name].k.shape[2] // block + bool(kind.sight.first)
        seen[name] = Seen(tokens * blocks * block, tokens * blocks * (tokens + block - 1))
    return seen


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
    looked_up = sum(parts[part] for part in _LOOKED_UP)
    weights = sum(parts.values()) - looked_up - missed * parts["experts"] + again
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
