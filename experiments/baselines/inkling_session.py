"""A random session of an interaction model, and the same session as a sequence of the reference."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.baselines.inkling_reference import AUDIO, IMAGE, PIXEL_MEAN, PIXEL_STD, USED
from interaction.config import ModelConfig
from interaction.model.turn_inputs import TurnInputs, frame_pairs, no_frame
from interaction.types import Special


def draw(config: ModelConfig, rng: np.random.Generator, turns: int) -> TurnInputs:
    """Random inputs of one session: text and frames in some micro-turns, control tokens in half.

    Args:
      config: Model configuration, with one patch.
      rng: Random numbers.
      turns: Micro-turns.
    """
    shape, size, audio = (1, turns), config.frame_size, config.audio

    def words(*more: int) -> np.ndarray:
        return rng.integers(Special.COUNT, Special.COUNT + USED, (*shape, *more))

    frames = rng.random((*shape, size, size, 3), np.float32)
    has_frame = rng.random(shape) < 0.5
    _, pairs = frame_pairs(no_frame(config, 1), jnp.asarray(frames), jnp.asarray(has_frame))
    control = rng.integers(0, Special.COUNT, shape)
    arrived = rng.random((*shape, config.text_slots)) < 0.2
    user, own = rng.integers(0, audio.bins, (2, *shape, audio.user_frames, audio.mels))
    return TurnInputs(
        user=jnp.asarray(user, jnp.int32),
        self_audio=jnp.asarray(own, jnp.int32),
        self_audio_gain=jnp.ones(shape),
        user_transcript=jnp.asarray(words(config.audio_positions), jnp.int32),
        last=jnp.asarray(np.where(rng.random(shape) < 0.5, control, words()), jnp.int32),
        text=jnp.asarray(np.where(arrived, words(config.text_slots), Special.PAD), jnp.int32),
        frame=pairs,
        has_frame=jnp.asarray(has_frame),
    )


class Sequence(NamedTuple):
    """A session as the reference reads it."""

    ids: np.ndarray  # int64[1, t], placeholders at patches and dMel frames
    pixels: np.ndarray  # float32[patches, 2, 40, 40, 3], normalised
    bins: np.ndarray  # int64[1, frames, mels]
    ends: np.ndarray  # int64[n, 5], indices of each micro-turn's audio, then text out


def as_sequence(inputs: TurnInputs, vocab: int) -> Sequence:
    """The session, with each token as the one whose row it has, see `inkling.open_released`.

    Args:
      inputs: Inputs of one session, with one patch a frame and one dMel frame a position.
      vocab: Rows of the table.
    """
    ids, ends = [], []
    text, last, has_frame = (np.asarray(x)[0] for x in (inputs.text, inputs.last, inputs.has_frame))
    for arrived, said, seen in zip(text, last, has_frame, strict=True):
        ids += [(token - Special.COUNT) % vocab for token in arrived if token != Special.PAD]
        ids += [IMAGE] * int(seen) + [AUDIO] * inputs.user.shape[2]
        ids.append((said - Special.COUNT) % vocab)
        ends.append(np.arange(len(ids) - inputs.user.shape[2] - 1, len(ids)))
    pixels = (np.asarray(inputs.frame)[0, has_frame] - PIXEL_MEAN) / PIXEL_STD
    mels = inputs.user.shape[-1]
    return Sequence(
        ids=np.array([ids], np.int64),
        pixels=pixels.astype(np.float32),
        bins=np.asarray(inputs.user, np.int64).reshape(1, -1, mels),
        ends=np.stack(ends),
    )
