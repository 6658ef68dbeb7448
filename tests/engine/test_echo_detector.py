"""The echo detector on recordings: a user, the model's speech, rooms and noise."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.signal import fftconvolve

from interaction.data.audio_file import read_audio
from interaction.data.bundled_user import ASSET
from interaction.engine.echo_detector import EchoDetector, correlate

ROOT = pathlib.Path(__file__).parents[2]
RATE, TURN = 16_000, 3_200


@pytest.fixture(scope="module")
def user() -> np.ndarray:
    return read_audio(ASSET)


@pytest.fixture(scope="module")
def model() -> np.ndarray:
    """What the model said to this user."""
    return read_audio(ROOT / "tests" / "golden" / "released_speech.flac")


def noise(size: int, db: float) -> np.ndarray:
    sound = np.random.default_rng(1).standard_normal(size)
    return (10 ** (db / 20) * sound).astype(np.float32)


def echo(played: np.ndarray, db: float, delay_s: float) -> np.ndarray:
    """A sound as it comes back in a room with a reverberation of 0.4 s."""
    time_s = np.arange(6_400) / RATE
    room = 0.15 * np.random.default_rng(2).standard_normal(6_400) * 10 ** (-3 * time_s / 0.4)
    room[0] = 1
    wet = fftconvolve(played, 10 ** (db / 20) * room / np.linalg.norm(room))
    return np.pad(wet, (round(delay_s * RATE), 0))[: len(played)].astype(np.float32)


def moved(pcm: np.ndarray, by_s: float) -> np.ndarray:
    return np.roll(pcm, round(by_s * RATE))


def found(microphone: np.ndarray, played: np.ndarray) -> list[float]:
    """s of audible speech that were played when the detector fired, at each time that it did."""
    detector, times, speech = EchoDetector(RATE), [], 0.0
    order = np.random.default_rng(3)  # the threads of the two sides take turns by chance
    for start in range(0, len(played) - TURN + 1, TURN):
        chunk = played[start : start + TURN]
        speech += TURN / RATE * bool(np.mean(np.square(chunk)) > 1e-4)
        first = order.random() < 0.5
        if first:
            detector.play(chunk)
        if detector.hear(microphone[start : start + TURN]):
            times.append(round(speech, 1))
        if not first:
            detector.play(chunk)
    return times


@pytest.mark.parametrize("delay_s", [0.02, 0.25, 0.6])
@pytest.mark.parametrize(
    ("db", "room_db", "most_s"), [(-12, -60, 5), (-20, -60, 6), (-20, -45, 15)]
)
def test_an_echo_is_found_once(
    model: np.ndarray, db: float, room_db: float, most_s: float, delay_s: float
) -> None:
    microphone = echo(model, db, delay_s) + noise(len(model), room_db)
    times = found(microphone, model)
    assert len(times) == 1 and times[0] <= most_s


@pytest.mark.parametrize(("db", "most_s"), [(-12, 8), (-20, 15)])
def test_an_echo_under_a_user_is_found(
    model: np.ndarray, user: np.ndarray, db: float, most_s: float
) -> None:
    for by_s in (0.0, 20.0):
        times = found(echo(model, db, 0.2) + moved(user, by_s) + noise(len(user), -60), model)
        assert len(times) == 1 and times[0] <= most_s


def test_silence_noise_and_a_user_are_no_echo(model: np.ndarray, user: np.ndarray) -> None:
    assert found(np.zeros_like(model), model) == []
    assert found(noise(len(model), -50), model) == []
    assert found(user, np.zeros_like(user)) == []  # the model is silent
    assert found(user, model) == []  # as they talked with each other
    for by_s in range(3, 60, 7):  # over each other
        assert found(user + noise(len(user), -70), moved(model, by_s)) == []


def test_clocks_may_differ(model: np.ndarray) -> None:
    stretched = np.interp(np.arange(0, len(model), 1 + 2e-4), np.arange(len(model)), model)
    times = found(echo(stretched.astype(np.float32), -20, 0.2), model)
    assert len(times) == 1 and times[0] <= 6


def test_a_side_that_loses_sound_is_put_beside_the_other_again(model: np.ndarray) -> None:
    """10 s of the microphone are lost before the model talks."""
    detector = EchoDetector(RATE)
    for _ in range(50):
        detector.play(np.zeros(TURN, np.float32))
    heard = [detector.hear(two) for two in _both(detector, model, echo(model, -20, 0.2))]
    assert sum(heard) == 1


def _both(detector: EchoDetector, played: np.ndarray, back: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(played) - TURN + 1, TURN):
        detector.play(played[start : start + TURN])
        yield back[start : start + TURN]


def test_the_correlation_is_loudest_at_the_delay() -> None:
    piece = noise(32_000, -20)[-9_600:]
    for delay in (0, 1_234, 6_399):
        sound = noise(16_000, -40)
        sound[delay : delay + 9_600] += np.float32(0.1) * piece
        got = correlate(piece, sound, RATE)
        assert got.shape == (6_400,) and got.argmax() == delay and got.max() > 20
        assert np.sqrt(np.mean(np.square(got))) == pytest.approx(1)
    assert not correlate(piece, np.zeros(16_000, np.float32), RATE).any()
