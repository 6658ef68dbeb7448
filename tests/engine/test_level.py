"""The level of a microphone: what training has passes bit for bit, the rest is brought there."""

import numpy as np
import pytest

from interaction.engine.level import LevelControl

RATE, TURN = 16_000, 3_200


def speech(level_db: float, turns: int, noise_db: float = -90.0, seed: int = 0) -> np.ndarray:
    """Bursts of 0.6 s of a 200 Hz tone and pauses of 0.4 s, float32[turns, 3200].

    A tone of root mean square r has the amplitude r * sqrt(2).
    """
    place = np.arange(turns * TURN)
    tone = np.sqrt(2) * np.sin(2 * np.pi * 200 * place / RATE) * 10 ** (level_db / 20)
    tone[place // TURN % 5 >= 3] = 0.0
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(len(place)) * 10 ** (noise_db / 20)
    return (tone + noise).astype(np.float32).reshape(turns, TURN)


def rms_db(pcm: np.ndarray) -> float:
    """Root mean square of the tone's micro-turns of a whole cycle, dB."""
    return 10 * np.log10(np.square(pcm[-5:-2].astype(np.float64)).mean())


@pytest.mark.parametrize("level_db", [-31.0, -26.0, -20.0, -14.0, -9.0])
def test_levels_of_the_training_pass_bit_for_bit(level_db: float) -> None:
    control = LevelControl(RATE)
    for chunk in speech(level_db, 100, noise_db=level_db - 12):
        assert control(chunk) is chunk
    assert control.gain_db == 0.0


@pytest.mark.parametrize(
    ("level_db", "gain_db", "problem"),
    [
        (-40.0, 13.5, ""),  # to -26.5
        (-46.0, 19.5, ""),
        (-55.0, 20.0, "too quiet"),  # 20 dB are not enough: -35
        (-5.0, -8.5, ""),  # to -13.5
    ],
)
def test_other_levels_are_brought_into_the_range(
    level_db: float, gain_db: float, problem: str
) -> None:
    control = LevelControl(RATE)
    given = speech(level_db, 100)
    out = np.stack([control(chunk) for chunk in given])
    assert control.gain_db == pytest.approx(gain_db, abs=0.1)
    assert rms_db(out) == pytest.approx(level_db + gain_db, abs=0.1)
    assert control.problem == problem
    # 6 dB/s, without a step between two micro-turns: over 10 samples at most 0.004 dB.
    heard = np.abs(given) > 1e-4
    gains = 20 * np.log10(out.astype(np.float64)[heard] / given[heard])
    steps = np.abs(gains[10:] - gains[:-10])[
        np.flatnonzero(heard)[10:] - np.flatnonzero(heard)[:-10] == 10
    ]
    assert 0.003 < steps.max() < 0.006


def test_noise_and_silence_are_not_amplified() -> None:
    rng = np.random.default_rng(1)
    noise, hum = LevelControl(RATE), LevelControl(RATE)
    tone = np.sin(2 * np.pi * 50 * np.arange(TURN) / RATE).astype(np.float32) * np.float32(0.003)
    silent = np.zeros(TURN, np.float32)
    for _ in range(100):
        chunk = (rng.standard_normal(TURN) * 0.003).astype(np.float32)
        assert noise(chunk) is chunk and hum(tone) is tone and noise.problem == ""
    control = LevelControl(RATE)
    assert all(control(silent) is silent for _ in range(100))


def test_speech_is_measured_above_the_noise() -> None:
    # Speech of -40 dB over noise of -55 dB: with the noise of the pauses it would seem quieter.
    control = LevelControl(RATE)
    for chunk in speech(-40.0, 100, noise_db=-55.0):
        control(chunk)
    assert control.gain_db == pytest.approx(13.5, abs=0.3)


def test_the_gain_returns_to_exactly_one() -> None:
    control = LevelControl(RATE)
    for chunk in speech(-40.0, 60):
        control(chunk)
    assert control.gain_db > 13.0
    for chunk in speech(-20.0, 60):
        control(chunk)
    # The edge of what passes: it was not brought there, so it passes again.
    for chunk in speech(-29.0, 60):
        assert control(chunk) is chunk


def test_a_clipped_microphone_is_reported_while_it_clips() -> None:
    control = LevelControl(RATE)
    loud = np.clip(speech(0.0, 30), -1, 1)
    for chunk in loud:
        out = control(chunk)
        assert np.abs(out).max() <= 1.0
    assert control.problem == "clipped"
    for chunk in speech(-20.0, 30):
        control(chunk)
    assert control.problem == ""


def test_a_single_full_sample_is_no_clipping() -> None:
    control = LevelControl(RATE)
    for chunk in speech(-20.0, 30):
        chunk[7] = 1.0
        control(chunk)
    assert control.problem == ""
