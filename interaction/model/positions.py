"""Embeds the inputs of micro-turns as positions of a session.

Positions that do not exist are moved to the end. Below this, the distance of two positions is the
difference of their indices, and a row's result does not depend on which positions others have.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import FirstTransformerConfig, ModelConfig
from interaction.distributed.collectives import SEQUENCE, axis_size, gather, take_part
from interaction.distributed.sharding import gather_and_cast
from interaction.model.turn_inputs import Arrivals, TurnInputs
from interaction.modules import audio_in, text, video_in
from interaction.modules.first import (
    first_audio_in,
    first_text,
    first_video_in,
)
from interaction.types import Array, Params, Special


class Positions(NamedTuple):
    """Embedded positions; those that exist come first, in the order of time."""

    x: Array  # float[b, t, d], zero where a position does not exist
    valid: Array  # bool[b, t], positions that exist
    time: Array  # uint32[b, t], position on the session's clock
    # int32[b, n, audio_positions + 1], indices of the audio and text-out positions of micro-turns
    ends: Array
    arrived: Array | None = None  # int32[b, m], indices of arrivals


def modules(config: ModelConfig) -> Any:  # noqa: ANN401
    """The classes AudioIn, VideoIn, TextIn and Heads of a model."""
    if isinstance(config.transformer, FirstTransformerConfig):
        return first_audio_in.AudioIn, first_video_in.VideoIn, first_text.TextIn, first_text.Heads
    return audio_in.AudioIn, video_in.VideoIn, text.TextIn, text.Heads


def embed(
    config: ModelConfig,
    backbone: Params,
    inputs: TurnInputs,
    clock: Array,
    arrivals: Arrivals | None = None,
    active: Array | None = None,
) -> Positions:
    """Lays out n micro-turns as positions: text in, video, audio, text out.

    A kind of input that no session has in this call takes no positions. On a mesh whose axis
    `sequence` splits sessions, `inputs` are this device's micro-turns; the result is its part of
    the positions, and `ends` are indices in those of the whole session.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      inputs: Inputs of n micro-turns.
      clock: uint32[b], number of the first micro-turn.
      arrivals: Text at any times in addition to that in `inputs`.
      active: bool[b], rows that take part; None: all. The others have no positions.

    Returns:
      The positions, t = n * positions of the variant, and m for arrivals.
    """
    b, n = inputs.last.shape
    parts, exists, offsets = zip(*_turn_parts(config, backbone, inputs), strict=True)
    x, offset = jnp.concatenate(parts, axis=2), jnp.concatenate(offsets)
    valid = jnp.concatenate(exists, axis=2)
    turn = clock[:, None] + jnp.arange(n, dtype=jnp.uint32)
    time = turn[:, :, None] * jnp.uint32(config.turn_span) + offset.astype(jnp.uint32)
    if inputs.exists is not None:
        valid &= inputs.exists[..., None]
    if active is not None:
        valid &= active[:, None, None]
    per_turn = len(offset)
    x, valid, time = (a.reshape(b, n * per_turn, *a.shape[3:]) for a in (x, valid, time))
    flat = [_blank(config, x, valid), valid, time]
    if arrivals is not None:
        x, valid, time = _embed_arrivals(config, backbone, arrivals)
        beside = _blank(config, x, valid), valid, time
        flat = [jnp.concatenate(pair, axis=1) for pair in zip(flat, beside, strict=True)]
    if axis_size(SEQUENCE) > 1:
        flat = [gather(a, SEQUENCE, dim=1) for a in flat]
    x, valid, time = flat
    # Only arrivals stand at another place than that of their time. Clocks wrap, after years.
    order, rank = sort(valid, None if arrivals is None else time)
    x, valid, time = (take_part(_take(a, order), SEQUENCE, dim=1) for a in (x, valid, time))
    own = take_part(rank, SEQUENCE, dim=1)
    turns = own[:, : n * per_turn].reshape(b, n, per_turn)
    ends = turns[:, :, -(config.audio_positions + 1) :]
    return Positions(x, valid, time, ends, own[:, n * per_turn :] if arrivals else None)


def sort(valid: Array, time: Array | None = None) -> tuple[Array, Array]:
    """The order in which the positions that exist come first.

    Args:
      valid: bool[b, t], positions that exist.
      time: uint32[b, t], their order; None: that in which they lie.

    Returns:
      int32[b, t], the places that the positions come from, and those that they go to.
    """
    key = jnp.where(valid, jnp.uint32(0) if time is None else time, ~jnp.uint32(0))
    order = jnp.argsort(key, axis=1, stable=True)
    return order, jnp.argsort(order, axis=1)


def _blank(config: ModelConfig, x: Array, valid: Array) -> Array:
    """Zeros where a position does not exist, since NaN there must not reach other positions."""
    return jnp.where(valid[..., None], x, 0).astype(config.transformer.dtype)


def _turn_parts(
    config: ModelConfig, backbone: Params, inputs: TurnInputs
) -> list[tuple[Array, Array, Array]]:
    """The kinds of positions: float[b, n, p, d], which exist bool[b, n, p], places in a turn."""
    b, n = inputs.last.shape
    audio_module, video_module, text_module, _ = modules(config)

    def weights(part: str) -> dict[str, Params]:
        return {"params": gather_and_cast(backbone[part], part, config.transformer.dtype)}

    audio = audio_module(config).apply(
        weights("audio_in"), inputs.user, inputs.self_audio, inputs.self_audio_gain
    )
    arrived, user_transcript, text_out = text_module(config).apply(
        weights("text_in"), inputs.text, inputs.user_transcript, inputs.last
    )
    parts = []
    if arrived is not None:
        parts.append(
            (arrived, jnp.asarray(inputs.text != Special.PAD), jnp.arange(config.text_slots))
        )
    if inputs.frame is not None:
        if inputs.has_frame is None:
            raise ValueError("has_frame: got None beside frame, wanted bool[b, n]; pass both")
        flat = inputs.frame.reshape(b * n, *inputs.frame.shape[2:])
        video = video_module(config).apply(weights("video_in"), flat)
        has = jnp.broadcast_to(inputs.has_frame[..., None], (b, n, config.patches))
        place = config.text_slots + jnp.arange(config.patches)
        parts.append((video.reshape(b, n, config.patches, -1), has, place))
    ends = jnp.concatenate([audio + user_transcript, text_out], axis=2)
    place = config.text_slots + config.patches + jnp.arange(config.audio_positions + 1)
    return [*parts, (ends, jnp.ones(ends.shape[:3], bool), place)]


def _embed_arrivals(
    config: ModelConfig, backbone: Params, arrivals: Arrivals
) -> tuple[Array, Array, Array]:
    """Text at given times, as in the text slots of micro-turns: x, exists, time."""
    params = gather_and_cast(backbone["text_in"], "text_in", config.transformer.dtype)
    if isinstance(config.transformer, FirstTransformerConfig):
        slot = arrivals.time % jnp.uint32(config.turn_span)
        slot = jnp.minimum(slot, config.text_slots - 1).astype(jnp.int32)
        x = first_text.embed_tokens(params, arrivals.token, slot)
    else:
        x = text.embed_tokens(params, arrivals.token)
    return x, arrivals.token != Special.PAD, arrivals.time


def embed_arrivals(config: ModelConfig, backbone: Params, arrivals: Arrivals) -> Positions:
    """Embeds m tokens of each session as positions, those that exist first.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      arrivals: The tokens, PAD at the end of rows that have fewer.
    """
    x, valid, time = _embed_arrivals(config, backbone, arrivals)
    x = _blank(config, x, valid)
    none = jnp.zeros((len(x), 0, config.audio_positions + 1), jnp.int32)
    place = jnp.broadcast_to(jnp.arange(x.shape[1]), valid.shape)
    return Positions(x, valid, time, none, place)


def take_positions(x: Array, places: Array) -> Array:
    """The positions [b, ..., d] of float[b, t, d] at indices int32[b, ...].

    Along the mesh axis `sequence` the parts of all devices are read.
    """
    x = gather(x, SEQUENCE, dim=1) if axis_size(SEQUENCE) > 1 else x
    return _take(x, places)


def _take(x: Array, places: Array) -> Array:
    return jax.vmap(lambda row, place: row[place])(x, places)
