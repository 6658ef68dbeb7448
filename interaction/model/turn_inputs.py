"""Inputs of the transformer in micro-turns, assembled by one function for step and training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.ops import dmel
from interaction.types import Array, Special


class TurnInputs(NamedTuple):
    """Inputs of the transformer in n micro-turns."""

    user: Array  # int32[b, n, frames, m], dMel of the user
    # int32[b, n, frames, m], dMel of the model's speech one micro-turn earlier; None: all blanked
    self_audio: Array | None
    self_audio_gain: Array  # float32[b, n], 0 where self audio is blanked, 1 elsewhere
    user_transcript: Array  # int32[b, n, audio_positions], of the previous micro-turn
    last: Array  # int32[b, n], text-out token of the previous micro-turn
    text: Array | None = None  # int32[b, n, text_slots], PAD where empty
    # float32[b, n, 2, size, size, 3] in [0, 1], the newest earlier frame first, see `frame_pairs`
    frame: Array | None = None
    has_frame: Array | None = None  # bool[b, n]
    # bool[b, n], None where all micro-turns exist; inputs of other micro-turns are ignored
    exists: Array | None = None


class Arrivals(NamedTuple):
    """Text at given times on the clock, for sessions in which few micro-turns have text."""

    token: Array  # int32[b, m], PAD where there is no token
    time: Array  # uint32[b, m], micro-turn * turn_span + slot; all times of a session differ


class TurnOutputs(NamedTuple):
    """Outputs of micro-turns that later micro-turns read.

    Outputs of n consecutive micro-turns have the axis n after that of sessions; outputs of a single
    micro-turn do not have it.
    """

    user_transcript: Array  # int32[b, (n,) audio_positions], NONE where the user said nothing
    text: Array  # int32[b, (n)], text-out tokens
    speech_mel: Array | None  # float32[b, (n,) speech_frames, m], log10 mel; None: not read


def silent_outputs(config: ModelConfig, sessions: int) -> TurnOutputs:
    """The outputs before the first micro-turn of a session: user and model are silent.

    Args:
      config: Model configuration.
      sessions: b.

    Returns:
      user_transcript int32[b, audio_positions], text int32[b], and speech_mel
      float32[b, speech_frames, m], log10 mel at `speech.mel_floor`.
    """
    return TurnOutputs(
        user_transcript=jnp.full((sessions, config.audio_positions), Special.NONE, jnp.int32),
        text=jnp.full(sessions, Special.SILENT, jnp.int32),
        speech_mel=silent_mel(config, sessions),
    )


def silent_mel(config: ModelConfig, sessions: int) -> Array:
    """Log10 mel of a micro-turn without speech: float32[b, speech_frames, m] at its floor."""
    shape = (sessions, config.audio.speech_frames, config.audio.mels)
    return jnp.full(shape, config.speech.mel_floor, jnp.float32)


class LastFrame(NamedTuple):
    """The newest frame of sessions."""

    frame: Array  # float32[b, size, size, 3]
    seen: Array  # bool[b], whether there was one


def no_frame(config: ModelConfig, sessions: int) -> LastFrame:
    """Before the first frame; models that see none keep an array without elements."""
    size = config.frame_size if config.trained_on_frames else 0
    return LastFrame(jnp.zeros((sessions, size, size, 3)), jnp.zeros(sessions, bool))


def frame_pairs(last: LastFrame, frame: Array, has_frame: Array) -> tuple[LastFrame, Array]:
    """Puts the newest earlier frame before each one; before the first one of a session, itself.

    Args:
      last: The newest frame before these.
      frame: float32[b, n, size, size, 3].
      has_frame: bool[b, n].

    Returns:
      The newest frame after these, and float32[b, n, 2, size, size, 3].
    """

    def pair(last: LastFrame, now: tuple[Array, Array]) -> tuple[LastFrame, Array]:
        frame, has = now
        before = jnp.where(last.seen[:, None, None, None], last.frame, frame)
        newest = jnp.where(has[:, None, None, None], frame, last.frame)
        return LastFrame(newest, last.seen | has), jnp.stack([before, frame], axis=1)

    turns = jnp.moveaxis(frame, 1, 0), jnp.moveaxis(has_frame, 1, 0)
    last, pairs = jax.lax.scan(pair, last, turns)
    return last, jnp.moveaxis(pairs, 0, 1)


def one_earlier(first: Array, turns: Array | None) -> Array:
    """Shifts outputs by one micro-turn.

    Args:
      first: [b, ...] of any dtype, outputs of the micro-turn before the first one.
      turns: [b, n, ...] of the same dtype, outputs of n micro-turns; None for a single micro-turn
        whose outputs are not known yet.

    Returns:
      [b, n, ...] of the same dtype, the outputs one micro-turn earlier; n = 1 where `turns` is
      None.
    """
    first = first[:, None]
    return first if turns is None else jnp.concatenate([first, turns[:, :-1]], axis=1)


def assemble(
    config: ModelConfig,
    user_mel: Array,
    before: TurnOutputs,
    outputs: TurnOutputs | None,
    self_audio_gain: Array,
    **given: Array | None,
) -> TurnInputs:
    """Assembles the inputs of n consecutive micro-turns: for the step, for prefill and training.

    Args:
      config: Model configuration.
      user_mel: float32[b, n, user_frames, m], log10 mel of the user.
      before: Outputs of the micro-turn before the first one, without the axis n.
      outputs: Outputs of the n micro-turns, of which the last is not read; None for a single
        micro-turn.
      self_audio_gain: float32[b, n], see `TurnInputs`.
      **given: The arrays `text`, `frame`, `has_frame` and `exists`, with the shapes and dtypes in
        `TurnInputs`.

    Returns:
      The inputs; self audio is None where `before.speech_mel` is None.
    """
    self_audio = None
    if before.speech_mel is not None:
        # The last frame of generated speech in each hop of the user's is read.
        stride = config.audio.user.hop // config.audio.speech.hop
        mel = one_earlier(before.speech_mel, None if outputs is None else outputs.speech_mel)
        self_audio = dmel.dmel_bins(mel[:, :, stride - 1 :: stride], config.audio)
    transcript, text = (None, None) if outputs is None else outputs[:2]
    return TurnInputs(
        user=dmel.dmel_bins(user_mel, config.audio),
        self_audio=self_audio,
        self_audio_gain=self_audio_gain,
        user_transcript=one_earlier(before.user_transcript, transcript),
        last=one_earlier(before.text, text),
        **given,
    )
