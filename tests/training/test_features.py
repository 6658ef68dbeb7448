"""Features that training computes from stored sessions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.training import features
from interaction.types import Special

CONFIG = presets.tiny()


def _transcript(sessions: int, turns: int) -> jax.Array:
    rng = np.random.default_rng(0)
    words = rng.integers(Special.COUNT, CONFIG.vocab, (sessions, turns, 2))
    return jnp.asarray(np.where(rng.random(words.shape) < 0.3, words, Special.NONE), jnp.int32)


def _keys(seed: int, sessions: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), sessions)


def test_wrong_words_are_missed_or_other_words_of_the_session() -> None:
    user_transcript = _transcript(400, 30)
    got = np.asarray(jax.jit(features.corrupt_transcript)(user_transcript, _keys(1, 400)))
    user_transcript = np.asarray(user_transcript)
    said = user_transcript != Special.NONE
    assert (got[~said] == Special.NONE).all()
    for mine, all_ in zip(got, user_transcript, strict=True):
        assert set(mine.ravel()) <= set(all_.ravel()) | {Special.NONE}
    wrong = (got != user_transcript)[said]
    missed = (got == Special.NONE)[said]
    # A session's rate is MOST_WRONG_WORDS * u^2 with u uniform, a third of it on average.
    assert abs(wrong.mean() - features.MOST_WRONG_WORDS / 3) < 0.02
    assert abs(missed.sum() / wrong.sum() - 0.5) < 0.05
    assert ((got == user_transcript).all(axis=(1, 2))).any(), "some sessions stay right"


def test_a_transcript_without_words_stays_empty() -> None:
    nothing = jnp.full((2, 5, 2), Special.NONE, jnp.int32)
    got = features.corrupt_transcript(nothing, _keys(0, 2))
    np.testing.assert_array_equal(got, nothing)


def test_an_unknown_transcript_is_read_as_missed_words() -> None:
    unknown = jnp.full((2, 5, 2), Special.PAD, jnp.int32).at[0, 1, 0].set(20)
    got = np.array(features.corrupt_transcript(unknown, _keys(0, 2)))
    wanted = np.full((2, 5, 2), Special.NONE)
    assert got[0, 1, 0] in (20, Special.NONE)
    got[0, 1, 0] = Special.NONE
    np.testing.assert_array_equal(got, wanted)


def test_words_stand_at_the_last_position_of_their_slot() -> None:
    """Two slots of 100 ms on four positions of 50 ms, by hand."""
    none = Special.NONE
    batch = {"user_transcript": jnp.array([[[20, none], [21, 22]]]), "text": jnp.array([[1, 1]])}
    placed = features.place_transcript(batch, CONFIG)
    wanted = [[[none, 20, none, none], [none, 21, none, 22]]]
    np.testing.assert_array_equal(placed["user_transcript"], wanted)
    assert placed["text"] is batch["text"]
    again = features.place_transcript(placed, CONFIG)  # one position a slot
    np.testing.assert_array_equal(again["user_transcript"], wanted)
    pad = Special.PAD
    unknown = features.place_transcript(
        {"user_transcript": jnp.array([[[pad, 20]]])} | {"text": jnp.array([[1]])}, CONFIG
    )
    assert unknown["user_transcript"].tolist() == [[[pad, pad, none, 20]]]
    three = {"user_transcript": jnp.zeros((1, 2, 3), jnp.int32)}
    with pytest.raises(ValueError, match=r"user_transcript: got 3 slots .* audio_positions=4"):
        features.place_transcript(three, CONFIG)


def test_augmented_users_differ_by_session_and_stay_near() -> None:
    audio = CONFIG.audio
    one = np.random.default_rng(0).normal(-3.0, 1.0, (1, 6, audio.user_frames, audio.mels))
    frames = jnp.asarray(np.repeat(one, 64, axis=0), jnp.float32)
    got = np.asarray(jax.jit(features.augment_user)(frames, _keys(2, 64)))
    assert got.shape == frames.shape and np.isfinite(got).all()
    assert len({row.tobytes() for row in got}) == 64
    again = np.asarray(jax.jit(features.augment_user)(frames, _keys(2, 64)))
    np.testing.assert_array_equal(got, again)
    # Lifts and tilts are bounded by 0.25 and 0.3; masked bands can only lower the median.
    # Measured: 0.28.
    assert np.abs(np.median(got - np.asarray(frames), axis=(1, 2, 3))).max() < 0.6


def test_token_windows_end_with_the_newest() -> None:
    text = jnp.asarray([[11, 12, 13, 14]])
    got = features.token_windows(text, 3)
    silent = Special.SILENT
    wanted = [[silent, silent, 11], [silent, 11, 12], [11, 12, 13], [12, 13, 14]]
    np.testing.assert_array_equal(got[0], wanted)


def test_delayed_moves_one_micro_turn() -> None:
    np.testing.assert_array_equal(features.delayed(jnp.asarray([[5, 6, 7]]), 1), [[1, 5, 6]])


def test_speech_mel_of_a_silent_micro_turn_is_the_floor() -> None:
    audio = CONFIG.audio
    noise = np.random.default_rng(0).integers(-9_000, 9_000, (1, 3 * audio.turn_samples))
    batch = {
        "model": jnp.asarray(noise, jnp.int16),
        "text": jnp.asarray([[Special.SILENT, 20, Special.SILENT]]),
    }
    got = np.asarray(features.speech_mel(batch, CONFIG))
    floor = np.float32(CONFIG.speech.mel_floor)
    assert (got[:, [0, 2]] == floor).all()
    assert (got[:, 1] > floor + 1).mean() > 0.9
