"""The positions of micro-turns: what stands where on a session's clock, embedded."""

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

    x: Array  # [b, t, d]
    valid: Array  # bool[b, t]
    time: Array  # uint32[b, t], place on the session's clock, for RoPE


def embed(config: ModelConfig, backbone: Params, inputs: TurnInputs, clock: Array) -> Positions:
    """Lays n micro-turns out as positions: text in, video, audio, text out.

    A kind that no session has in this call takes no positions; where it stands on the clock does
    not depend on that, so rows do not see which variant they ran in.

    Args:
      config: The model's.
      backbone: Its parameters.
      inputs: n micro-turns.
      clock: uint32[b], number of the first micro-turn.

    Returns:
      The positions, [b, n * positions of the variant].
    """
    b, n = inputs.last.shape
    dtype = config.transformer.dtype

    def weights(part: str) -> dict[str, Params]:
        return {"params": gather_and_cast(backbone[part], part, dtype)}

    audio = AudioIn(config).apply(
        weights("audio_in"), inputs.user, inputs.self_audio, inputs.self_audio_gain
    )
    arrived, user_transcript, self_audio = TextIn(config).apply(
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
    parts += [audio + user_transcript, self_audio]
    valid.append(jnp.ones((b, n, config.audio_positions + 1), bool))
    offsets.append(audio_at + jnp.arange(config.audio_positions + 1))
    x = jnp.concatenate(parts, axis=2)
    turn = clock[:, None] + jnp.arange(n, dtype=jnp.uint32)
    time = turn[:, :, None] * jnp.uint32(config.turn_span)
    time = time + jnp.concatenate(offsets).astype(jnp.uint32)
    exists = jnp.concatenate(valid, axis=2)
    if inputs.exists is not None:
        exists &= inputs.exists[..., None]
    # What does not exist may hold any numbers, NaN among them; nothing of it may spread.
    x = jnp.where(exists[..., None], x, 0).astype(dtype)
    flat = (b, n * x.shape[2])
    return Positions(x.reshape(*flat, -1), exists.reshape(flat), time.reshape(flat))


def embed_arrivals(config: ModelConfig, backbone: Params, arrivals: Arrivals) -> Positions:
    """Text at its own places, as `embed` has it in the micro-turns' text slots.

    Returns:
      The positions, [b, m].
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
    """Of all positions [b, t, d] those that are read out: [b, n, audio_positions + 1, d]."""
    b, t, d = x.shape
    return x.reshape(b, turns, t // turns, d)[:, :, -(config.audio_positions + 1) :]
