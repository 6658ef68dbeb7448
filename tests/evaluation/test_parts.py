"""Intervals, statistics, annotations and audio files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.stats import poisson as poisson_law

from interaction.data import audio_file
from interaction.evaluation import activity, parse_events, statistics


def test_active_intervals_finds_a_tone_and_drops_a_click() -> None:
    pcm = np.zeros(32_000, np.float32)
    pcm[8_000:16_000] = 0.1 * np.sin(np.arange(8_000))
    pcm[11_000:12_000] = 0  # 62 ms of silence within a word
    pcm[24_000:24_300] = 0.5  # a click
    found = activity.active_intervals(pcm, offset_s=0.2)
    np.testing.assert_allclose(found, [[0.7, 1.2]], atol=0.02)


def test_threshold_is_minus_45_dbfs() -> None:
    sound = np.ones(16_000, np.float32)
    assert len(activity.active_intervals(sound * 10 ** (-44.9 / 20))) == 1
    assert len(activity.active_intervals(sound * 10 ** (-45.1 / 20))) == 0
    assert len(activity.active_intervals(np.zeros(0))) == 0


def test_interval_arithmetic() -> None:
    spans = np.asarray([[0.0, 1.0], [1.4, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(activity.merge(spans, 0.5), [[0, 2], [3, 4]])
    left = activity.subtract(spans, np.asarray([[3.5, 9.0], [0.5, 1.6], [0.2, 0.3]]))
    np.testing.assert_allclose(left, [[0, 0.2], [0.3, 0.5], [1.6, 2], [3, 3.5]])
    assert activity.overlap(spans, 0.5, 3.5) == pytest.approx(0.5 + 0.6 + 0.5)
    assert activity.covering(spans, 1.2) is None
    assert activity.covering(spans, 1.4) == (1.4, 2.0)
    assert activity.first_start(spans, 0.0, 2.0) == 1.4
    assert activity.merge(activity.no_intervals(), 0.5).shape == (0, 2)


def test_wilson_and_poisson_intervals() -> None:
    low, high = statistics.wilson(90, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert statistics.wilson(0, 0) is None
    low, high = statistics.poisson(4, 2.0)
    assert poisson_law.cdf(4, high * 2) == pytest.approx(0.025, abs=0.004)
    assert poisson_law.sf(3, low * 2) == pytest.approx(0.025, abs=0.004)
    assert statistics.poisson(0, 10.0)[0] == 0
    assert statistics.poisson(0, 0.0) is None


def test_word_accuracy() -> None:
    assert statistics.word_accuracy(["a b c d"], ["a x c"]) == 0.5
    assert statistics.word_accuracy(["a"], ["x y z"]) == 0
    assert statistics.word_accuracy([], []) is None
    with pytest.raises(ValueError, match="1 sentences"):
        statistics.word_accuracy([], ["a"])


def test_events_are_sorted_and_checked() -> None:
    one = {"kind": "request", "form": "ask/a", "start_s": 2.0, "end_s": 3.0}
    one |= {"answer": "paris", "answer_turn": 16, "answer_end_s": 4.1}
    two = {**one, "kind": "pause_request", "start_s": 0.0, "pauses": [[0.5, 1.0]], "extra": 1}
    events = parse_events(json.dumps({"events": [one, two]}))
    assert [event.start_s for event in events] == [0.0, 2.0]
    assert events[0].pauses == ((0.5, 1.0),) and events[0].family == "ask"
    with pytest.raises(ValueError, match=r"event\.kind"):
        parse_events(json.dumps({"events": [{**one, "kind": "song"}]}))
    with pytest.raises(ValueError, match=r"event\.end_s"):
        parse_events(json.dumps({"events": [{**one, "end_s": 1.0}]}))
    with pytest.raises(ValueError, match=r"event\.answer_end_s: got 3\.4"):
        parse_events(json.dumps({"events": [{**one, "answer_end_s": 3.4}]}))
    for meta in ("[]", '{"events": 3}', '{"events": [3]}', '{"events": [{"kind": "request"}]}'):
        with pytest.raises(ValueError, match="meta"):
            parse_events(meta)
    with pytest.raises(ValueError, match="meta: event 1 "):
        parse_events(json.dumps({"events": [one, {**one, "pauses": [[1]]}]}))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_audio_round_trip_with_another_rate_and_two_channels(tmp_path: Path, suffix: str) -> None:
    time = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = tmp_path / f"a.{suffix}"
    audio_file.write_audio(path, np.stack([tone, 0 * tone], axis=1), 44_100)
    got = audio_file.read_audio(path)
    assert got.dtype == np.float32 and got.shape == (16_000,)
    wanted = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(got - wanted)[500:-500].max() < 1e-3


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_bad_audio_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(ValueError, match="no such file"):
        audio_file.read_audio(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        audio_file.read_audio(path)
    path.write_bytes(b"this is no audio" * 99)
    with pytest.raises(ValueError, match="cannot be decoded"):
        audio_file.read_audio(path)
    audio_file.write_audio(path, np.random.default_rng(0).normal(0, 0.1, 48_000))
    whole = path.read_bytes()
    for part in (0.5, 0.97):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ValueError, match="cut off"):
            audio_file.read_audio(path)
    audio_file.write_audio(path, np.zeros(100))
    with pytest.raises(ValueError, match="100 samples"):
        audio_file.read_audio(path)


def test_nan_is_refused(tmp_path: Path) -> None:
    pcm = np.zeros(16_000, np.float32)
    pcm[9_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", pcm, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match="1 samples that are NaN"):
        audio_file.read_audio(tmp_path / "nan.wav")
    with pytest.raises(ValueError, match="NaN"):
        audio_file.write_audio(tmp_path / "out.wav", pcm)


@pytest.mark.parametrize("sizes", [(0, 0), (0x7FFFF024, 0x7FFFF000), (0xFFFFFFFF, 0xFFFFFFFF)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_file_from_a_pipe_is_read_to_its_end(
    tmp_path: Path, sizes: tuple[int, int], channels: int
) -> None:
    pcm = np.random.default_rng(0).integers(-9_000, 9_000, (4_800, channels)).astype("<i2")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, 16_000, 32_000, 2 * channels, 16)
    note = struct.pack("<4sI4s", b"LIST", 4, b"INFO")
    path = tmp_path / "a.wav"
    for tail in (b"", b"\1"):  # a sample that was cut through
        body = b"WAVE" + form + note + struct.pack("<4sI", b"data", sizes[1]) + pcm.tobytes() + tail
        path.write_bytes(struct.pack("<4sI", b"RIFF", sizes[0]) + body)
        wanted = pcm.mean(axis=1) / 32_768
        np.testing.assert_allclose(audio_file.read_audio(path), wanted, atol=1e-7)
    body = b"WAVE" + form + struct.pack("<4sI4sI", b"data", 0, b"LIST", 4_000) + bytes(4_000)
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)  # knows that it is empty
    with pytest.raises(ValueError, match="got 0 samples"):
        audio_file.read_audio(path)


def test_a_float_file_with_values_of_int16_is_refused(tmp_path: Path) -> None:
    pcm = np.sin(np.arange(16_000) / 9).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", 8_000 * pcm, 16_000, subtype="FLOAT")
    with pytest.raises(
        ValueError, match=r"loud\.wav: got samples up to 8000, .*divide int16 by 3276"
    ):
        audio_file.read_audio(tmp_path / "loud.wav")
    soundfile.write(tmp_path / "high.wav", 1.5 * pcm, 16_000, subtype="FLOAT")
    got = audio_file.read_audio(tmp_path / "high.wav")
    np.testing.assert_array_equal(got, np.clip(np.float32(1.5) * pcm, -1, 1))
