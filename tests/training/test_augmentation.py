"""What training changes about its inputs: how often, how strongly, and that the model reads it.

Strengths are measured on inputs for which they can be read off, and compared with the numbers that
`features` and `conversation` state: in their bounds, near them, and uniform in between.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from interaction.model.positions import embed
from interaction.model.turn_inputs import TurnInputs
from interaction.training import conversation_loss, features
from interaction.types import Special
from tests.support import FINE, random_params

CONFIG = FINE
MELS = CONFIG.audio.mels
CHANNEL = np.arange(MELS)
LINE = np.stack([np.ones(MELS), 2 * CHANNEL / MELS - 1], axis=1)  # of a lift and a tilt


def _keys(sessions: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), sessions)


def _check_uniform(values: np.ndarray, low: float, high: float, blur: float) -> None:
    """Draws between `low` and `high`, each measured up to `blur`."""
    assert low - blur <= values.min() and values.max() <= high + blur, (values.min(), values.max())
    near = 0.05 * (high - low)
    assert values.min() < low + near and values.max() > high - near, (values.min(), values.max())
    assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def _fit(profile: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Offset and slope of a line through channels that are kept: [b, m], bool[b, m] -> [b, 2]."""
    pairs = zip(profile, kept, strict=True)
    return np.stack([np.linalg.lstsq(LINE[k], p[k])[0] for p, k in pairs])


@pytest.fixture(scope="module")
def augmented() -> dict[str, np.ndarray]:
    """1,024 sessions of 16 frames: flat spectra, loud and soft in turn, and steep ones."""
    frames = np.zeros((1_024, 2, 8, MELS), np.float32)
    inputs = {
        "flat": frames + np.where(np.arange(8) % 2, -9.0, -3.0)[:, None],
        "steep": frames + 10 * CHANNEL,
    }
    run, keys = jax.jit(features.augment_user), _keys(1_024)
    found = {name: run(np.float32(value), keys) for name, value in inputs.items()}
    return {name: np.asarray(value).reshape(1_024, 16, MELS) for name, value in found.items()}


def test_users_are_lifted_and_tilted_and_noised(augmented: dict[str, np.ndarray]) -> None:
    loud, soft = augmented["flat"][:, ::2], augmented["flat"][:, 1::2]
    hidden = loud.mean(axis=1) < -6.0
    offset, tilt = _fit(loud.mean(axis=1), ~hidden).T
    _check_uniform(offset + 3.0, -0.25, 0.25, blur=0.03)
    _check_uniform(tilt, -0.3, 0.3, blur=0.03)
    # Noise comes last: it is as strong in soft frames and in hidden channels.
    power = [part.var(axis=1, ddof=1).mean(axis=1) for part in (loud, soft)]
    _check_uniform(np.sqrt(np.mean(power, axis=0)), 0.0, 0.15, blur=0.01)


def test_a_band_of_channels_is_hidden_in_half_of_the_sessions(
    augmented: dict[str, np.ndarray],
) -> None:
    """A width uniform in -8..8 from a place uniform in 0..80 covers that many channels."""
    hidden = augmented["flat"][:, ::2].mean(axis=1) < -6.0
    count = hidden.sum(axis=1)
    assert count.max() == 8
    first, last = hidden.argmax(axis=1), MELS - 1 - hidden[:, ::-1].argmax(axis=1)
    assert np.all((last - first + 1 == count) | (count == 0)), "a band is one piece"
    # No channel: widths below 0, or widths w below 1 that hold none, 1 - w of them; and what
    # begins beyond the last channel. Four deviations over 1,024 sessions are 0.062 and 0.3.
    nothing = 1 / 2 + 1 / 32
    assert abs((count == 0).mean() - nothing - (1 - nothing) / MELS) < 0.062
    # Widths above 0 have a mean of 4; of w channels, w / 2 of those at the edge are cut off.
    assert abs(count.mean() - (4 - 64 / 3 / 2 / MELS) / 2) < 0.3


def test_spectra_are_warped_and_shifted(augmented: dict[str, np.ndarray]) -> None:
    """Of a ramp of 10 a channel the slope is 10 times the warp, the offset 10 times the shift."""
    profile = augmented["steep"].mean(axis=1)
    kept = (profile > 50.0) & (CHANNEL >= 16) & (CHANNEL < 60)  # not hidden, not at an edge
    offset, slope = _fit(profile, kept).T
    slope = slope * 2 / MELS  # by channel, from by half of the channels
    offset = offset - slope * MELS / 2
    _check_uniform(slope / 10, 0.9, 1.1, blur=0.002)  # the tilt adds 0.0008 at most
    _check_uniform(offset / 10, -1.5, 1.5, blur=0.06)  # lift and tilt add 0.055 at most


def _levels(pcm: np.ndarray) -> np.ndarray:
    """DMel levels of sessions, as they are: [b, n, frames, m]."""
    audio = CONFIG.audio
    mel = features.stream_mel(jnp.asarray(pcm), audio.user, audio)
    return np.clip(np.round((np.asarray(mel, np.float64) + 7.0) / 0.6), 0, 15)


def test_the_model_reads_augmented_users() -> None:
    """Levels of 128 sessions with the same noise, lifted and tilted as stated.

    White noise has a flat spectrum. Its loudness falls evenly over four levels, so that a mean over
    frames shows less than a level.
    """
    sessions, turns = 128, 16
    fall = np.repeat(10 ** (-2.4 * np.arange(turns) / turns), CONFIG.audio.turn_samples)
    noise = np.random.default_rng(0).standard_normal(fall.shape)
    pcm = np.round(6_000 * fall * noise)[None].astype(np.int16)
    plain = _levels(pcm).reshape(1, -1, MELS)
    assert 0 < plain.min() and plain.max() < 15
    batch = {
        "user": np.repeat(pcm, sessions, axis=0),
        "text": np.full((sessions, turns), Special.SILENT, np.int32),
        "user_transcript": np.full((sessions, turns, 2), Special.NONE, np.int32),
    }
    speech = np.full((sessions, turns, CONFIG.audio.speech_frames, MELS), -5.0, np.float32)
    run = jax.jit(partial(conversation_loss.turn_inputs, CONFIG))
    heard = np.asarray(run(batch, speech, _keys(sessions)).user).reshape(sessions, -1, MELS)
    kept = heard.std(axis=1) > 0.6  # a hidden band does not follow the loudness
    lift, tilt = _fit(0.6 * (heard.mean(axis=1) - plain.mean(axis=1)), kept).T
    _check_uniform(lift, -0.25, 0.25, blur=0.05)
    _check_uniform(tilt, -0.3, 0.3, blur=0.05)


SESSIONS = 2_000
WORDS = np.arange(100, 106, dtype=np.int32).reshape(3, 2)  # heard in three micro-turns


@pytest.fixture(scope="module")
def inputs() -> TurnInputs:
    """What the model reads in 2,000 sessions that are alike: six words, speech of one level."""
    batch = {
        "user": np.zeros((SESSIONS, 3 * CONFIG.audio.turn_samples), np.int16),
        "text": np.full((SESSIONS, 3), 20, np.int32),
        "user_transcript": np.repeat(WORDS[None], SESSIONS, axis=0),
    }
    speech = np.full((SESSIONS, 3, CONFIG.audio.speech_frames, MELS), -2.8, np.float32)
    run = jax.jit(partial(conversation_loss.turn_inputs, CONFIG))
    return jax.device_get(run(batch, speech, _keys(SESSIONS, 1)))


def test_self_audio_is_blanked_in_three_of_five_sessions(inputs: TurnInputs) -> None:
    gain = inputs.self_audio_gain
    assert np.all((gain == 0) | (gain == 1))
    assert np.all(gain == gain[:, :1]), "a session is blanked as a whole"
    # Four deviations over 2,000 sessions: sqrt(0.6 0.4 / 2,000) = 0.011.
    assert abs((gain[:, 0] == 0).mean() - 0.6) < 0.044


def test_blanked_self_audio_does_not_reach_the_backbone(inputs: TurnInputs) -> None:
    backbone = random_params(CONFIG)["backbone"]
    some = jax.tree.map(lambda leaf: leaf[:8], inputs)
    run = jax.jit(lambda given: embed(CONFIG, backbone, given, jnp.zeros(8, jnp.uint32)).x)
    other = some._replace(self_audio=some.self_audio[::-1] // 2)
    differs = np.any(np.asarray(run(some) != run(other)), axis=(1, 2))
    np.testing.assert_array_equal(differs, some.self_audio_gain[:, 0] == 1)
    assert 0 < differs.sum() < 8


def test_user_transcripts_are_wrong_at_the_stated_rate(inputs: TurnInputs) -> None:
    """A session's rate is 0.4 u^2, u uniform: 0.4 / 3 on average, with a variance of 0.0142."""
    got, said = inputs.user_transcript[:, 1:], WORDS[:-1]
    assert np.all(inputs.user_transcript[:, 0] == Special.NONE)
    wrong, missed = got != said, got == Special.NONE
    assert np.all(missed | np.isin(got, WORDS))
    # Half is missed; of the other half, one in six is the same word by chance. Four deviations of
    # the mean over four words of 2,000 sessions, which share a rate: 0.017 and 0.012.
    assert abs(wrong.mean() - 0.4 / 3 * (1 / 2 + 5 / 12)) < 0.017
    assert abs(missed.mean() - 0.4 / 3 / 2) < 0.012
    shares = wrong.mean(axis=(1, 2))
    # Were all sessions alike, they would differ by sqrt(0.122 0.878 / 4) = 0.164.
    assert shares.std() > 0.18


def _rounded_normal(steps: np.ndarray) -> np.ndarray:
    """Probability that a standard normal is rounded to each number."""
    return norm.cdf(steps + 0.5) - norm.cdf(steps - 0.5)


def test_self_audio_is_jittered_by_a_rounded_normal(inputs: TurnInputs) -> None:
    level = round((-2.8 + 7.0) / 0.6)
    steps = np.arange(-4, 5)
    moved = inputs.self_audio[:, 1:] - level  # before the first micro-turn stands silence
    found = np.array([(moved == step).mean() for step in steps])
    # Four deviations over 2.56 million levels: 0.0012 at most.
    np.testing.assert_allclose(found, _rounded_normal(steps), atol=1.2e-3)
    assert len({session.tobytes() for session in moved}) == SESSIONS


def test_jitter_keeps_silence_and_the_range_of_levels() -> None:
    bins = np.broadcast_to(np.array([0, 1, 15])[:, None, None, None], (3, 50, 8, MELS))
    run = jax.jit(partial(conversation_loss.jitter_levels, CONFIG))
    silent, low, high = np.asarray(run(jnp.asarray(bins, jnp.int32), _keys(3)))
    assert np.all(silent == 0)
    assert low.min() == 0 and high.max() == 15
    # Four deviations over 32,000 levels: 0.011. Below 1 is 0 alone, above 15 nothing.
    assert abs((low == 0).mean() - norm.cdf(-0.5)) < 0.011
    assert abs((high == 15).mean() - norm.cdf(0.5)) < 0.011
