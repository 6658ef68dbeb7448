"""Rooms as boxes: impulse responses by the image method, and the echo of a loudspeaker.

Allen and Berkley, "Image method for efficiently simulating small-room acoustics", 1979. All signals
are at 16 kHz.
"""

import dataclasses
import math

import numpy as np
import scipy.optimize
import scipy.signal

from interaction.data.clips import RATE
from interaction.data.voices import SPLITS

SOUND = 343.0  # m/s
_FINE = 8  # images arrive at multiples of 1 / (_FINE * RATE) s
_WALL = 0.3  # m that people and microphones keep from walls
LENGTHS = {"train": ((2.5, 5.0), (7.0, 11.0)), "heldout": ((5.0, 7.0),)}  # m, the longer side
REVERBERATION = (0.15, 0.6)  # s
ECHO_DELAY = (0.02, 0.5)  # s
ECHO_LEVEL = (-40.0, -6.0)  # dB
# Rigid walls hold a constant pressure for long, which no loudspeaker or mouth can raise.
_HIGH_PASS = scipy.signal.butter(2, 15.0, "highpass", fs=RATE, output="sos")
# Cosines of directions, evenly over an eighth of the sphere, [directions, 3].
_HEIGHT, _TURN = (
    part.ravel() for part in np.meshgrid(np.arange(0.5, 24) / 24, np.arange(0.5, 24) / 48 * np.pi)
)
_DIRECTIONS = np.stack(
    [
        np.sqrt(1 - _HEIGHT**2) * np.cos(_TURN),
        np.sqrt(1 - _HEIGHT**2) * np.sin(_TURN),
        _HEIGHT,
    ],
    axis=1,
)
Point = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Room:
    """A box with walls that reflect alike."""

    size: Point  # m
    reverberation: float  # s in which sound falls by 60 dB

    @property
    def reflection(self) -> float:
        """Factor of the pressure at each wall; the same for all of them.

        Sound in direction u meets c |u_x| / L_x + c |u_y| / L_y + c |u_z| / L_z walls a second. The
        factor is the one with which the mean over all directions falls by 30 dB in half the
        reverberation time; the decay of 30 drawn rooms was 0.98 to 1.15 times the one asked for.
        With Eyring's formula, which has one rate for all directions, it was 1.04 to 1.63 times.
        """
        rate = SOUND * (_DIRECTIONS / np.array(self.size)).sum(axis=1)  # walls a second
        met = rate * self.reverberation / 2

        def above(log_energy: float) -> float:
            return float(np.exp(log_energy * met).mean()) - 1e-3

        return math.exp(scipy.optimize.root_scalar(above, bracket=(-50.0, 0.0)).root / 2)


def _images(
    size: float, source: float, microphone: float, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Along one side: distances float64[images] in m, and how many walls each image has met."""
    turns = np.arange(-math.ceil(reach / (2 * size)) - 1, math.ceil(reach / (2 * size)) + 2)
    straight = source + 2 * turns * size - microphone
    mirrored = -source + 2 * turns * size - microphone
    walls = np.concatenate([np.abs(2 * turns), np.abs(2 * turns - 1)])
    return np.concatenate([straight, mirrored]), walls


def impulse_response(room: Room, source: Point, microphone: Point) -> np.ndarray:
    """How sound of a source arrives at a microphone, as long as the reverberation.

    Args:
      room: The box; one corner is at (0, 0, 0).
      source: Place in it, m.
      microphone: Another place in it, m.

    Returns:
      float32[taps]. Tap 0 is the direct sound, with the value 1; later sound is relative to it.

    Raises:
      ValueError: A place is outside of the room, or both are the same.
    """
    if not all(
        0 < at < side
        for place in (source, microphone)
        for at, side in zip(place, room.size, strict=True)
    ):
        raise ValueError(f"source, microphone: got {source}, {microphone}, wanted both in {room}")
    direct = math.dist(source, microphone)
    if direct == 0:
        raise ValueError(f"source, microphone: got {source} twice, wanted two places; move one")
    samples = int(room.reverberation * RATE)
    reach = direct + room.reverberation * SOUND
    (x, i), (y, j), (z, k) = (
        _images(*side, reach) for side in zip(room.size, source, microphone, strict=True)
    )
    distance = np.sqrt(np.square(x)[:, None, None] + np.square(y)[:, None] + np.square(z))
    near = distance < reach
    walls = (i[:, None, None] + j[:, None] + k)[near]
    distance = distance[near]
    times = np.round((distance - direct) / SOUND * RATE * _FINE).astype(int)
    power = room.reflection**walls * direct / distance
    fine = np.bincount(times, power, samples * _FINE)[: samples * _FINE]
    response = scipy.signal.sosfilt(_HIGH_PASS, scipy.signal.resample_poly(fine, 1, _FINE))
    return (response / response[0]).astype(np.float32)


def reverberate(pcm: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech float32[samples] through float32[taps]; returns float32[samples], the rest cut off."""
    return scipy.signal.oaconvolve(pcm, response)[: len(pcm)].astype(np.float32)


def draw_room(rng: np.random.Generator, split: str) -> Room:
    """Draws a room; training has none of the held-out lengths.

    Raises:
      ValueError: The split is unknown.
    """
    if split not in LENGTHS:
        raise ValueError(f"split: got {split!r}, wanted one of {SPLITS}; name one of them")
    spans = LENGTHS[split]
    length = rng.uniform(*spans[int(rng.integers(len(spans)))])
    size = (length, max(length * rng.uniform(0.6, 1.0), 2.0), rng.uniform(2.3, 3.5))
    return Room(size, float(rng.uniform(*REVERBERATION)))


def draw_places(rng: np.random.Generator, room: Room, distance: float) -> tuple[Point, Point]:
    """Draws a source and a microphone at a distance in m from each other, away from the walls.

    Raises:
      ValueError: The room has no such places, or hardly any.
    """
    side = np.array(room.size)
    for _ in range(1_000):
        microphone = rng.uniform(_WALL, side - _WALL)
        way = rng.standard_normal(3)
        source = microphone + distance * way / np.linalg.norm(way)
        if np.all((source > _WALL) & (source < side - _WALL)):
            return tuple(source.tolist()), tuple(microphone.tolist())
    raise ValueError(f"distance: got {distance} m, wanted one that fits into {room}; lower it")


def echo(
    rng: np.random.Generator,
    model_pcm: np.ndarray,
    level_db: float,
    delay_s: float,
    split: str = "train",
) -> np.ndarray:
    """The model's own voice, as it comes back to the user's microphone through a room.

    Args:
      rng: Source of the room and of the places in it.
      model_pcm: float32[samples], what the loudspeaker plays.
      level_db: Energy of the echo relative to `model_pcm`, of `ECHO_LEVEL`.
      delay_s: When the direct sound arrives, of `ECHO_DELAY`.
      split: Split of the room.

    Returns:
      float32[samples]; what comes later than `model_pcm` ends is cut off.

    Raises:
      ValueError: Level or delay are out of range, or the split is unknown.
    """
    for name, value, (least, most) in (
        ("level_db", level_db, ECHO_LEVEL),
        ("delay_s", delay_s, ECHO_DELAY),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name}: got {value}, wanted {least} to {most}; change it")
    room = draw_room(rng, split)
    places = draw_places(rng, room, float(rng.uniform(0.2, 1.2)))
    wet = scipy.signal.oaconvolve(model_pcm, impulse_response(room, *places))
    energy, played = np.square(wet).sum(), np.square(model_pcm).sum()
    gain = 10 ** (level_db / 20) * math.sqrt(played / energy) if energy else 0.0
    late = np.concatenate([np.zeros(round(delay_s * RATE)), gain * wet])
    return late[: len(model_pcm)].astype(np.float32)
