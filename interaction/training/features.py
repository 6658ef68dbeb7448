"""Features of stored sessions, computed on the device: inputs and targets of the model.

A batch holds the PCM of both sides `user` and `model` int16[b, samples], the text-out tokens `text`
int32[b, n], and `user_transcript` int32[b, n, slots], which the losses first place on the model's
audio positions, see `place_transcript`. Where text arrives it also holds the tokens `arrived`
int32[b, m], PAD where there is none, and their places `arrived_slot` int32[b, m], which are
micro-turn * text_slots + slot.
"""

import jax
import jax.numpy as jnp

from interaction.config import AudioConfig, ModelConfig, SpectrumConfig
from interaction.model import control_tokens
from interaction.model.turn_inputs import Arrivals
from interaction.ops import mel
from interaction.ops.dense import exact
from interaction.training.objective import Batch
from interaction.types import Array, Special

MOST_WRONG_WORDS = 0.4  # largest share of a session's words that `corrupt_transcript` replaces


def pcm(samples: Array) -> Array:
    """Scales stored samples.

    Args:
      samples: int16[...], PCM.

    Returns:
      float32[...], PCM in [-1, 1).
    """
    return samples.astype(jnp.float32) / 32_768.0


def stream_mel(samples: Array, spectrum: SpectrumConfig, audio: AudioConfig) -> Array:
    """Log-mel of whole sessions, by micro-turn.

    Args:
      samples: int16[b, samples], PCM of n whole micro-turns.
      spectrum: Configuration of the frames.
      audio: Configuration of the audio front end.

    Returns:
      float32[b, n, frames, m], log10 magnitude.
    """
    tail = mel.init_tail(samples.shape[0], spectrum)
    _, frames = mel.log_mel_stream(tail, pcm(samples), spectrum, audio)
    return frames.reshape(samples.shape[0], -1, audio.turn_samples // spectrum.hop, audio.mels)


def speech_mel(batch: Batch, config: ModelConfig) -> Array:
    """Mel of the model's speech as the step makes it: at the floor in a silent micro-turn.

    Args:
      batch: `model` int16[b, samples] and `text` int32[b, n], see the module.
      config: Model configuration.

    Returns:
      float32[b, n, speech_frames, m], log10 magnitude, at least `speech.mel_floor`.
    """
    frames = stream_mel(batch["model"], config.audio.speech, config.audio)
    silent = (control_tokens.spoken_tokens(batch["text"])[0] == Special.SILENT)[:, :, None, None]
    floor = config.speech.mel_floor
    return jnp.where(silent, floor, jnp.maximum(frames, floor))


def arrivals(batch: Batch, config: ModelConfig) -> Arrivals | None:
    """The text that arrives in a batch's sessions, with its time; None if there is none."""
    if "arrived" not in batch:
        return None
    turn, slot = jnp.divmod(batch["arrived_slot"], config.text_slots)
    return Arrivals(batch["arrived"], (turn * config.turn_span + slot).astype(jnp.uint32))


def text_slots(batch: Batch, config: ModelConfig) -> Array | None:
    """The text that arrives, by micro-turn and slot.

    Args:
      batch: See the module.
      config: Model configuration.

    Returns:
      int32[b, n, text_slots], PAD where empty; None for a batch without arriving text.
    """
    if "arrived" not in batch:
        return None
    b, n = batch["text"].shape
    slots = jnp.full((b, n * config.text_slots), Special.PAD, jnp.int32)
    place = jnp.where(batch["arrived"] == Special.PAD, slots.shape[1], batch["arrived_slot"])
    slots = slots.at[jnp.arange(b)[:, None], place].set(batch["arrived"], mode="drop")
    return slots.reshape(b, n, config.text_slots)


def delayed(turns: Array, start: float | Array) -> Array:
    """Moves values one micro-turn later.

    Args:
      turns: [b, n, ...], float32, int32 or another dtype.
      start: Value of the first micro-turn, of a shape that broadcasts to [b, 1, ...].

    Returns:
      [b, n, ...] of the same dtype; the last micro-turn's value is dropped.
    """
    first = jnp.full_like(turns[:, :1], start)
    return jnp.concatenate([first, turns[:, :-1]], axis=1)


def token_windows(text: Array, window: int) -> Array:
    """The last spoken tokens at each micro-turn of whole sessions.

    Args:
      text: int32[b, n], text-out tokens.
      window: Tokens of a window.

    Returns:
      int32[b, n, window], the newest token last, SILENT before the first micro-turn.
    """
    silent = jnp.full((len(text), window), Special.SILENT, text.dtype)
    return control_tokens.token_windows(silent, control_tokens.spoken_tokens(text)[0])


def augment_user(frames: Array, keys: Array) -> Array:
    """Imitates other speakers and rooms, with one draw per session.

    Warps the channel axis (vocal tract length, Jaitly & Hinton 2013), tilts and lifts the spectrum,
    masks a band of channels in half of the sessions (SpecAugment, arXiv 1904.08779), and adds
    noise.

    Args:
      frames: float32[b, n, frames, m], mel of the user, log10 magnitude.
      keys: Typed PRNG keys [b].

    Returns:
      float32[b, n, frames, m], log10 magnitude.
    """
    return jax.vmap(_augment_session)(frames, keys)


def _augment_session(frames: Array, key: Array) -> Array:
    mels = frames.shape[-1]
    keys = jax.random.split(key, 8)
    channel = jnp.arange(mels, dtype=jnp.float32)
    warp = jax.random.uniform(keys[0], minval=0.9, maxval=1.1)
    shift = jax.random.uniform(keys[1], minval=-1.5, maxval=1.5)
    source = jnp.clip(channel * warp + shift, 0, mels - 1)
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - channel))  # [m to, m from]
    flat = frames.reshape(-1, mels)
    out = jnp.matmul(flat, weights.T, precision=exact(flat, weights))
    tilt = jax.random.uniform(keys[2], minval=-0.3, maxval=0.3)
    lift = jax.random.uniform(keys[3], minval=-0.25, maxval=0.25)
    out = out + tilt * (channel / mels - 0.5) * 2 + lift
    low = jax.random.uniform(keys[4], maxval=mels)
    width = jax.random.uniform(keys[5], minval=-8.0, maxval=8.0)  # negative masks nothing
    masked = (channel >= low) & (channel < low + width)
    out = jnp.where(masked, jnp.min(out), out)
    scale = 0.15 * jax.random.uniform(keys[6])
    out = out + scale * jax.random.normal(keys[7], out.shape)
    return out.reshape(frames.shape)


def place_transcript(batch: Batch, config: ModelConfig) -> Batch:
    """Puts the words of each slot of the user transcript at the slot's last audio position.

    Args:
      batch: `user_transcript` int32[b, n, slots], the words by equal slots of a micro-turn, NONE
        where nothing was said and PAD where it is unknown.
      config: Model configuration.

    Returns:
      The batch with `user_transcript` int32[b, n, audio_positions]; the other positions of a slot
      are PAD where the slot is PAD, otherwise NONE.

    Raises:
      ValueError: The model's audio positions do not divide into the slots.
    """
    heard, positions = batch["user_transcript"], config.audio_positions
    b, n, slots = heard.shape
    if positions % slots:
        raise ValueError(
            f"user_transcript: got {slots} slots a micro-turn, wanted a divisor of "
            f"audio_positions={positions}; make sessions or choose a model that fit each other"
        )
    other = jnp.where(heard == Special.PAD, Special.PAD, Special.NONE).astype(heard.dtype)
    placed = jnp.repeat(other[..., None], positions // slots, axis=-1).at[..., -1].set(heard)
    return {**batch, "user_transcript": placed.reshape(b, n, positions)}


def known(user_transcript: Array) -> Array:
    """Where the user transcript is known; unknown positions train nothing.

    Args:
      user_transcript: int32[...], PAD where it is unknown.

    Returns:
      bool[...].
    """
    return user_transcript != Special.PAD


def words(user_transcript: Array) -> Array:
    """Where the user transcript has a word.

    Args:
      user_transcript: int32[...], NONE where nothing was said, PAD where it is unknown.

    Returns:
      bool[...].
    """
    return known(user_transcript) & (user_transcript != Special.NONE)


def corrupt_transcript(user_transcript: Array, keys: Array) -> Array:
    """Puts errors into a user transcript, as the model makes them; the rate is drawn per session.

    Half of the wrong words are missed, and half are replaced by other words of the session. Where
    nothing was said no word is added. Where the transcript is unknown all words are missed.

    Args:
      user_transcript: int32[b, n, audio_positions], NONE where nothing was said, PAD where it is
        unknown.
      keys: Typed PRNG keys [b].

    Returns:
      int32[b, n, audio_positions], without PAD.
    """
    user_transcript = jnp.where(known(user_transcript), user_transcript, Special.NONE)
    return jax.vmap(_corrupt_session)(user_transcript, keys)


def _corrupt_session(user_transcript: Array, key: Array) -> Array:
    rate_key, wrong_key, missed_key, other_key = jax.random.split(key, 4)
    rate = MOST_WRONG_WORDS * jnp.square(jax.random.uniform(rate_key))
    said = user_transcript != Special.NONE
    wrong = said & (jax.random.uniform(wrong_key, user_transcript.shape) < rate)
    missed = jax.random.bernoulli(missed_key, 0.5, user_transcript.shape)
    chance = jnp.where(said, jax.random.uniform(other_key, user_transcript.shape), -1.0).reshape(-1)
    # The words of the session in random order, then NONE.
    shuffled = user_transcript.reshape(-1)[jnp.argsort(-chance)]
    rank = jnp.cumsum(said.reshape(-1)) - 1
    other = shuffled[rank].reshape(user_transcript.shape)
    return jnp.where(wrong, jnp.where(missed, Special.NONE, other), user_transcript)
