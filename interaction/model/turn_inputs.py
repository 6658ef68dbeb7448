"""What the transformer reads in micro-turns; one function assembles it, for step and training."""

from typing import NamedTuple

import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.ops import dmel
from interaction.types import Array, Special


class TurnInputs(NamedTuple):
    """What the transformer reads in n micro-turns."""

    user: Array  # int32[b, n, frames, m], dMel of the user
    # int32[b, n, frames, m], dMel of the model's speech one micro-turn earlier; None blanks all
    self_audio: Array | None
    self_audio_gain: Array  # float32[b, n], 0 where self audio is blanked, 1 elsewhere
    user_transcript: Array  # int32[b, n, audio_positions], of the previous micro-turn
    last: Array  # int32[b, n], text-out token of the previous micro-turn
    text: Array | None = None  # int32[b, n, text_slots], PAD where empty
    frame: Array | None = None  # float32[b, n, size, size, 3] in [0, 1]
    has_frame: Array | None = None  # bool[b, n]
    # bool[b, n], None where all micro-turns exist; the others may hold any numbers
    exists: Array | None = None


class Arrivals(NamedTuple):
    """Text at places of its own on the clock, beside micro-turns of which most have none."""

    token: Array  # int32[b, m], PAD where there is none
    time: Array  # uint32[b, m], micro-turn * turn_span + slot; no two of a session are equal


class TurnOutputs(NamedTuple):
    """What micro-turns put out, as far as later micro-turns read it.

    One micro-turn has no axis n; n micro-turns in a row have it behind the axis of sessions.
    """

    user_transcript: Array  # int32[b, (n,) audio_positions], NONE where nothing was said
    text: Array  # int32[b, (n)], text-out tokens
    speech_mel: Array | None  # float32[b, (n,) speech_frames, m], log10; None: not read


def silent_outputs(config: ModelConfig, sessions: int) -> TurnOutputs:
    """What stands before the first micro-turn of a session: silence on both sides.

    Args:
      config: The model's.
      sessions: b.

    Returns:
      user_transcript int32[b, audio_positions], text int32[b], and speech_mel
      float32[b, speech_frames, m] at the floor of speech.
    """
    return TurnOutputs(
        user_transcript=jnp.full((sessions, config.audio_positions), Special.NONE, jnp.int32),
        text=jnp.full(sessions, Special.SILENT, jnp.int32),
        speech_mel=silent_mel(config, sessions),
    )


def silent_mel(config: ModelConfig, sessions: int) -> Array:
    """Mel of a micro-turn without speech: float32[b, speech_frames, m] at the floor of speech."""
    shape = (sessions, config.audio.speech_frames, config.audio.mels)
    return jnp.full(shape, config.speech.mel_floor, jnp.float32)


def one_earlier(first: Array, turns: Array | None) -> Array:
    """What stands one micro-turn before each micro-turn.

    Args:
      first: [b, ...], of the micro-turn before the first one.
      turns: [b, n, ...], of the micro-turns themselves; None for one micro-turn whose own outputs
        are not known yet.

    Returns:
      [b, n, ...], n = 1 where `turns` is None.
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
    """Assembles the inputs of n micro-turns in a row: for the step, for prefill and for training.

    Args:
      config: The model's.
      user_mel: float32[b, n, user_frames, m], log10 mel of the user.
      before: Outputs of the micro-turn before them, without the axis n.
      outputs: Their own outputs, of which the last micro-turn's are not read; None for a single
        micro-turn.
      self_audio_gain: float32[b, n], see `TurnInputs`.
      **given: `text`, `frame`, `has_frame` and `exists`, see `TurnInputs`.

    Returns:
      The inputs; self audio is None where `before.speech_mel` is.
    """
    self_audio = None
    if before.speech_mel is not None:
        # Of the frames of generated speech each user_hop's last one is heard.
        stride = config.audio.user_hop // config.audio.speech_hop
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
