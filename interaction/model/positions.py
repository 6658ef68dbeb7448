"""Embeds the inputs of micro-turns as positions on a session's clock."""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.sharding import gather_and_cast
from interaction.model.turn_inputs import Arrivals, TurnInputs
from interaction.modules.audio_in import AudioIn
from interaction.modules.text import TextIn
from interaction.modules.video_in import VideoIn
from interaction.types import Array, Params, Special


class Positions(NamedTuple):
    """Embedded positions of n micro-turns, in order."""

    x: Array  # float[b, t, d]
    valid: Array  # bool[b, t], positions that exist
    time: Array  # uint32[b, t], position on the session's clock, for RoPE


def embed(config: ModelConfig, backbone: Params, inputs: TurnInputs, clock: Array) -> Positions:
    """Lays out n micro-turns as positions: text in, video, audio, text out.

    A kind of input that no session has in this call takes no positions. Times on the clock do not
    depend on that, so a row's result is the same in every variant.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      inputs: Inputs of n micro-turns.
      clock: uint32[b], number of the first micro-turn.

    Returns:
      The positions, t = n * positions of the variant.
    """
    b, n = inputs.last.shape
    dtype = config.transformer.dtype

    def weights(part: str) -> dict[str, Params]:
        return {"params": gather_and_cast(backbone[part], part, dtype)}

    audio = AudioIn(config).apply(
        weights("audio_in"), inputs.user, inputs.self_audio, inputs.self_audio_gain
    )
    arrived, user_transcript, text_out = TextIn(config).apply(
        weights("text_in"), inputs.text, inputs.user_transcript, inputs.last
    )
    parts, valid, offsets = [], [], []
    text_at, video_at, audio_at = 0, config.text_slots, config.text_slots + config.patches
    if arrived is not None:
        parts.append(arrived)
        valid.append(inputs.text != Special.PAD)
        offsets.append(text_at + jnp.arange(config.text_slots))
    if inputs.frame is not None:
        flat = inputs.frame.reshape(b * n, *inputs.frame.shape[2:])
        video = VideoIn(config).apply(weights("video_in"), flat)
        parts.append(video.reshape(b, n, config.patches, -1))
        has_frame = inputs.has_frame
        if has_frame is None:
            raise ValueError("has_frame: got None beside frame, wanted bool[b, n]; pass both")
        valid.append(jnp.broadcast_to(has_frame[..., None], (b, n, config.patches)))
        offsets.append(video_at + jnp.arange(config.patches))
    parts += [audio + user_transcript, text_out]
    valid.append(jnp.ones((b, n, config.audio_positions + 1), bool))
    offsets.append(audio_at + jnp.arange(config.audio_positions + 1))
    x = jnp.concatenate(parts, axis=2)
    turn = clock[:, None] + jnp.arange(n, dtype=jnp.uint32)
    time = turn[:, :, None] * jnp.uint32(config.turn_span)
    time = time + jnp.concatenate(offsets).astype(jnp.uint32)
    exists = jnp.concatenate(valid, axis=2)
    if inputs.exists is not None:
        exists &= inputs.exists[..., None]
    # Positions that do not exist may contain NaN, which must not reach other positions.
    x = jnp.where(exists[..., None], x, 0).astype(dtype)
    flat = (b, n * x.shape[2])
    return Positions(x.reshape(*flat, -1), exists.reshape(flat), time.reshape(flat))


def embed_arrivals(config: ModelConfig, backbone: Params, arrivals: Arrivals) -> Positions:
    """Embeds text at given times, as `embed` does in the text slots of micro-turns.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      arrivals: m tokens of each session, with their times.

    Returns:
      The positions, t = m.
    """
    dtype = config.transformer.dtype
    params = gather_and_cast(backbone["text_in"], "text_in", dtype)
    slot = arrivals.time % jnp.uint32(config.turn_span)
    slot = jnp.minimum(slot, config.text_slots - 1).astype(jnp.int32)
    x = jnp.take(params["table"], arrivals.token, axis=0)
    x = x + jnp.take(params["slot"], slot, axis=0)
    exists = arrivals.token != Special.PAD
    return Positions(jnp.where(exists[..., None], x, 0).astype(dtype), exists, arrivals.time)


def last_positions(config: ModelConfig, x: Array, turns: int) -> Array:
    """The audio positions and the text-out position of each micro-turn.

    Args:
      config: Model configuration.
      x: float[b, t, d], all positions of n micro-turns.
      turns: n.

    Returns:
      float[b, n, audio_positions + 1, d].
    """
    b, t, d = x.shape
    return x.reshape(b, turns, t // turns, d)[:, :, -(config.audio_positions + 1) :]
