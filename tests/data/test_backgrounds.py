"""Backgrounds: levels by definition, and spectra by what each sound is."""

import numpy as np
import pytest

from interaction.data import backgrounds
from interaction.data.clips import RATE

TRAIN, HELD_OUT = backgrounds.BACKGROUNDS["train"], backgrounds.BACKGROUNDS["heldout"]
SOUNDS = TRAIN | HELD_OUT


def rms(pcm: np.ndarray) -> float:
    return float(np.sqrt(np.mean(pcm.astype(np.float64) ** 2)))


def test_the_signal_to_noise_ratio_is_that_of_the_speech_without_pauses() -> None:
    rng = np.random.default_rng(0)
    speech = np.zeros(2 * RATE, np.float32)
    speech[: RATE // 2] = 0.2 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    noise = rng.standard_normal(2 * RATE)
    for wanted in (-5.0, 0.0, 17.5):
        added = backgrounds.mix(speech, noise, wanted) - speech
        got = 20 * np.log10(0.2 / np.sqrt(2) / rms(added))
        assert abs(got - wanted) < 0.1


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_have_one_level_and_depend_on_their_generator_alone(name: str) -> None:
    sound = SOUNDS[name]
    first, again, other = (sound(np.random.default_rng(seed), RATE) for seed in (0, 0, 1))
    assert first.shape == (RATE,) and first.dtype == np.float32 and np.isfinite(first).all()
    assert abs(rms(first) - 1) < 1e-3
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.corrcoef(first, other)[0, 1]) < 0.9
    assert len(sound(np.random.default_rng(2), 400)) == 400


def test_held_out_kinds_are_others() -> None:
    assert not set(TRAIN) & set(HELD_OUT) and not set(TRAIN.values()) & set(HELD_OUT.values())


def test_babble_has_as_many_talkers_as_asked_for() -> None:
    clip = np.zeros(4_000, np.float32)
    clip[:320] = 0.01  # one frame of sound, which is all that its level counts
    for talkers in (1, 3, 5):
        out = backgrounds.babble(np.random.default_rng(1), [clip], talkers, 80_000)
        assert abs(rms(out) - 1) < 1e-3
        # 20 repetitions of every talker, whose frames may overlap
        assert out.sum() / out[out > 0].min() == pytest.approx(talkers * 20 * 320, rel=0.02)


def test_babble_has_no_pause() -> None:
    clips = [np.full(700, 0.1, np.float32), np.full(1_300, 0.4, np.float32)]
    out = backgrounds.babble(np.random.default_rng(3), clips, 1, 10_000)
    np.testing.assert_allclose(out, 1.0, rtol=1e-5)
