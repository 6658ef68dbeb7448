"""Channels against closed forms: levels, tones through filters, Python's own G.711."""

import audioop  # of Python up to 3.12

import numpy as np
import pytest

from interaction.data import channels, g711
from interaction.data.clips import RATE

SECOND = np.arange(RATE) / RATE


def tone(hertz: float, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * SECOND)).astype(np.float32)


def decibels(out: np.ndarray, into: np.ndarray) -> float:
    """Energy of the middle of `out`, dB above that of `into`."""
    middle = slice(RATE // 4, -RATE // 4)
    return float(10 * np.log10(np.square(out[middle]).sum() / np.square(into[middle]).sum()))


@pytest.mark.parametrize("dbfs", [-50.0, -31.3, -10.0])
def test_level_is_that_of_the_speech_and_not_of_the_pauses(dbfs: float) -> None:
    half = tone(440, 0.02)
    pcm = np.concatenate([half, np.zeros_like(half), np.zeros_like(half)])
    out = channels.set_level(pcm, dbfs)
    assert out.dtype == np.float32
    # A sine of amplitude a has the power a^2 / 2.
    assert abs(20 * np.log10(np.abs(out).max()) - 10 * np.log10(2) - dbfs) < 0.1
    np.testing.assert_array_equal(out[RATE:], 0)


def test_levels_out_of_range_and_silence_are_errors() -> None:
    with pytest.raises(ValueError, match=r"dbfs: got -9\.0, wanted -50\.0 to -10\.0"):
        channels.set_level(tone(440), -9.0)
    with pytest.raises(ValueError, match="got silence"):
        channels.set_level(np.zeros(RATE, np.float32), -20.0)


def test_clipping() -> None:
    pcm = np.array([-2, -0.3, 0, 0.001, 0.4, 9], np.float32)
    np.testing.assert_allclose(channels.hard_clip(pcm, 0.35), [-0.35, -0.3, 0, 0.001, 0.35, 0.35])
    soft = channels.soft_clip(pcm, 0.5)
    np.testing.assert_allclose(soft[[2, 3, 5]], [0, 0.001, 0.5], rtol=1e-5)
    half = 0.5 * (np.e**1.6 - 1) / (np.e**1.6 + 1)  # tanh(0.4 / 0.5)
    np.testing.assert_allclose(soft[4], half, rtol=1e-6)


@pytest.mark.parametrize("law", ["mu", "a"])
def test_telephone_has_its_band(law: g711.Law) -> None:
    gain = {}
    for hertz in (150, 230, 300, 400, 1_000, 3_300, 3_400, 3_480):
        gain[hertz] = decibels(channels.telephone(tone(hertz), law), tone(hertz))
    assert max(gain[150], gain[230], gain[3_480]) < -40
    assert max(abs(gain[h]) for h in (400, 1_000, 3_300)) < 0.25
    assert max(abs(gain[h] + 6.02) for h in (300, 3_400)) < 0.5
    spectrum = np.abs(np.fft.rfft(channels.telephone(tone(6_000) + tone(1_000), law)))
    assert spectrum[1_000] > 1e3 * spectrum[1_990:2_010].max()  # its alias


@pytest.mark.parametrize(
    ("law", "encode", "decode"),
    [
        ("mu", audioop.lin2ulaw, audioop.ulaw2lin),
        ("a", audioop.lin2alaw, audioop.alaw2lin),
    ],
)
def test_g711_equals_audioop(law: g711.Law, encode: object, decode: object) -> None:
    codes = np.arange(256, dtype=np.uint8)
    samples = np.frombuffer(decode(codes.tobytes(), 2), "<i2")
    np.testing.assert_array_equal(g711.decode(codes, law), samples)
    # audioop's thresholds differ from the nearest sample at some places, but not on the samples.
    np.testing.assert_array_equal(
        g711.decode(np.frombuffer(encode(samples.tobytes(), 2), np.uint8), law),
        g711.decode(g711.encode(samples, law), law),
    )


@pytest.mark.parametrize("law", ["mu", "a"])
def test_telephone_does_not_move_sound(law: g711.Law) -> None:
    pcm = np.zeros(8_001, np.float32)
    pcm[4_000] = 0.9
    out = channels.telephone(pcm, law)
    assert len(out) == 8_001 and abs(int(np.argmax(np.abs(out))) - 4_000) <= 1


@pytest.mark.parametrize("codec", ["opus", "vorbis", "mp3"])
def test_codecs_keep_time_and_lose_more_with_compression(codec: channels.Codec) -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(RATE)
    pcm = 0.3 * np.sin(2 * np.pi * (200 * SECOND + 1_400 * SECOND**2)) + noise  # a sweep
    pcm = (pcm * np.sin(2 * np.pi * 3 * SECOND)).astype(np.float32)
    errors = []
    for compression in (0.0, channels.HARDEST):
        out = channels.lossy(pcm, codec, compression)
        assert out.shape == pcm.shape and out.dtype == np.float32
        shared = np.fft.irfft(np.fft.rfft(out, 2 * RATE) * np.fft.rfft(pcm, 2 * RATE).conj())
        assert np.argmax(shared) in (0, 1, 2 * RATE - 1)
        errors.append(decibels(out - pcm, pcm))
    assert errors[0] < -20 and errors[0] + 5 < errors[1] < 0


def test_wrong_codecs_are_errors() -> None:
    with pytest.raises(ValueError, match="codec: got 'flac'"):
        channels.lossy(tone(440), "flac", 0.5)  # pyrefly: ignore
    with pytest.raises(ValueError, match=r"compression: got 1\.0"):
        channels.lossy(tone(440), "mp3", 1.0)


def test_frames_are_lost_in_bursts() -> None:
    ones = np.ones(40_000 * channels.FRAME - 7, np.float32)
    out = channels.lose_frames(np.random.default_rng(3), ones, 0.2, 3.0)
    assert out.shape == ones.shape
    frames = np.pad(out, (0, 7), constant_values=out[-1]).reshape(-1, channels.FRAME)
    np.testing.assert_array_equal(frames, np.repeat(frames[:, :1], channels.FRAME, axis=1))
    lost = frames[:, 0] == 0
    bursts = np.count_nonzero(np.diff(lost.astype(int), prepend=0) == 1)
    # 40,000 frames: 0.01 and 0.2 are more than three standard deviations.
    assert abs(lost.mean() - 0.2) < 0.015 and abs(lost.sum() / bursts - 3.0) < 0.2
    np.testing.assert_array_equal(channels.lose_frames(np.random.default_rng(3), ones, 0.0), ones)
    with pytest.raises(ValueError, match=r"share, burst: got 0\.8, 1\.0"):
        channels.lose_frames(np.random.default_rng(3), ones, 0.8)
