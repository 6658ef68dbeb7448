"""Rooms by the image method against hand computation, and echoes by cross-correlation."""

import math

import numpy as np
import pytest
import scipy.signal

from interaction.data import shoebox
from interaction.data.clips import RATE
from interaction.data.shoebox import SOUND, Room


def test_first_reflection_by_hand() -> None:
    # All walls are far away but the floor. Its image is 60 samples later than the direct sound:
    # 3 m + 60 / 16,000 s * 343 m/s = 4.28625 m, which is the root of 3^2 + (2 * 1.53068)^2.
    room, height = Room((60.0, 60.0, 60.0), 5.0), math.sqrt(4.28625**2 - 9) / 2
    response = shoebox.impulse_response(room, (28.5, 30.0, height), (31.5, 30.0, height))
    assert response[0] == 1
    assert 1 + int(np.argmax(response[1:1_000])) == 60
    # 0.015: the filter that takes out constant pressure
    assert response[60] == pytest.approx(room.reflection * 3 / 4.28625, abs=0.015)
    assert np.abs(np.delete(response[1:1_000], 59)).max() < 0.015


def test_images_are_as_many_and_as_strong_as_in_a_list_by_hand() -> None:
    room, source, microphone = Room((3.0, 4.0, 2.5), 0.2), (1.0, 1.2, 1.4), (2.1, 3.0, 1.1)
    wanted = np.zeros(int(0.02 * RATE))
    direct = math.dist(source, microphone)
    for index in np.ndindex(*([12] * 3)):  # the image behind n walls along each side, from Allen
        walls, place = 0, []
        for n, size, at in zip(np.array(index) - 6, room.size, source, strict=True):
            place.append(n * size + at if n % 2 == 0 else (n + 1) * size - at)
            walls += abs(n)
        path = math.dist(place, microphone)
        late = round((path - direct) / SOUND * RATE)
        if late < len(wanted):
            wanted[late] += room.reflection**walls * direct / path
    got = shoebox.impulse_response(room, source, microphone)[: len(wanted)]
    wanted = scipy.signal.lfilter(*scipy.signal.butter(2, 15, "highpass", fs=RATE), wanted)
    # Means over 0.5 ms hardly depend on where between two samples a pulse stands.
    got, wanted = (np.convolve(one, np.hanning(18) / 8.5, "valid") for one in (got, wanted))
    assert np.corrcoef(got, wanted)[0, 1] > 0.99
    assert np.polyfit(wanted, got, 1)[0] == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("size", [(4.0, 3.5, 3.0), (9.0, 5.5, 2.5)])
@pytest.mark.parametrize("seconds", [0.2, 0.5])
def test_sound_decays_in_the_time_asked_for(seconds: float, size: shoebox.Point) -> None:
    room = Room(size, seconds)
    response = shoebox.impulse_response(room, (1.0, 1.1, 1.3), (2.8, 2.2, 1.6))
    assert response.dtype == np.float32 and len(response) == int(seconds * RATE)
    left = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]  # Schroeder's integral
    level = 10 * np.log10(left / left[0])
    decaying = np.flatnonzero((level < -5) & (level > -25))
    slope = np.polyfit(decaying / RATE, level[decaying], 1)[0]
    assert -60 / slope == pytest.approx(seconds, rel=0.2)


def test_far_sources_are_more_reverberant() -> None:
    room = Room((6.0, 5.0, 3.0), 0.4)
    microphone = (1.0, 2.5, 1.5)
    shares = []
    for distance in (0.3, 1.0, 3.0):
        response = shoebox.impulse_response(room, (1.0 + distance, 2.5, 1.5), microphone)
        shares.append(np.square(response[1:]).sum() / response[0] ** 2)
    # The reverberant field is the same all over the room, the direct sound falls with 1/r^2.
    assert shares[1] / shares[0] == pytest.approx((1.0 / 0.3) ** 2, rel=0.4)
    assert shares[2] / shares[1] == pytest.approx(9, rel=0.4)


def test_rooms_and_places_are_drawn_apart_by_split() -> None:
    rng = np.random.default_rng(0)
    held_out = [shoebox.draw_room(rng, "heldout") for _ in range(200)]
    train = [shoebox.draw_room(rng, "train") for _ in range(200)]
    assert all(5.0 <= room.size[0] < 7.0 for room in held_out)
    assert not any(5.0 <= room.size[0] < 7.0 for room in train)
    assert {room.size[0] > 6 for room in train} == {True, False}
    for room in train[:50]:
        assert max(room.size) == room.size[0] or room.size[0] < 3.5
        source, microphone = shoebox.draw_places(rng, room, 0.8)
        assert math.dist(source, microphone) == pytest.approx(0.8)
        assert all(0.3 < at < side - 0.3 for at, side in zip(source, room.size, strict=True))
    with pytest.raises(ValueError, match=r"distance: got 9\.0 m"):
        shoebox.draw_places(rng, held_out[0], 9.0)
    with pytest.raises(ValueError, match="wanted both in"):
        shoebox.impulse_response(held_out[0], (1, 1, 1), (1, 1, 9))


def test_speech_keeps_its_start_and_its_length() -> None:
    pcm = np.zeros(RATE, np.float32)
    pcm[100] = 0.5
    response = np.array([1, 0, 0, 0.25], np.float32)
    out = shoebox.reverberate(pcm, response)
    assert out.shape == pcm.shape
    np.testing.assert_allclose(out[100:104], [0.5, 0, 0, 0.125], atol=1e-7)


@pytest.mark.parametrize(("level", "delay"), [(-6.0, 0.02), (-23.0, 0.1234), (-40.0, 0.5)])
def test_echo_has_its_delay_and_level(level: float, delay: float) -> None:
    rng = np.random.default_rng(5)
    pcm = np.zeros(3 * RATE, np.float32)
    pcm[:RATE] = 0.1 * rng.standard_normal(RATE)  # silent for longer than delay and reverberation
    out = shoebox.echo(rng, pcm, level, delay)
    assert out.shape == pcm.shape and out.dtype == np.float32
    ratio = 10 * np.log10(np.square(out).sum() / np.square(pcm).sum())
    assert abs(ratio - level) < 0.1
    shared = np.fft.irfft(np.fft.rfft(out, 6 * RATE) * np.fft.rfft(pcm, 6 * RATE).conj())
    assert abs(int(np.argmax(np.abs(shared))) - delay * RATE) <= 1
    np.testing.assert_array_equal(out[: int(delay * RATE) - 1], 0)


def test_an_echo_of_silence_is_silence_and_ranges_are_checked() -> None:
    rng = np.random.default_rng(0)
    silence = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(shoebox.echo(rng, silence, -10.0, 0.1), silence)
    with pytest.raises(ValueError, match=r"level_db: got -3\.0"):
        shoebox.echo(rng, silence, -3.0, 0.1)
    with pytest.raises(ValueError, match=r"delay_s: got 0\.6"):
        shoebox.echo(rng, silence, -10.0, 0.6)
