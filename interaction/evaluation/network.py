"""A simulated network between a microphone and an engine, to measure a `PlayoutBuffer`.

Each chunk holds a constant that tells its serial number, so what is heard is read from the output
itself. Clocks are simulated: hours take seconds, and a seed gives the same result everywhere.
"""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from interaction.engine.playout import PlayoutBuffer

RATE, TURN, TURN_S = 16_000, 3_200, 0.2  # samples a second, samples and s of a micro-turn
JITTER_S = 0.06  # s, mean of the exponential jitter
BURST_S, BURST_EVERY_S = 0.6, 20.0  # s that a burst is held back; mean time between bursts
LOSS = 0.02  # share of the chunks that never arrive
PAUSES_S = (0.4, 30.0)  # shortest and longest pause of a microphone
PAUSE_EVERY_S = 60.0  # s, mean time between pauses
STALL_S = 6.0  # s of sound that arrives at once
_CODES = 8_000  # serial numbers are coded modulo this
_LOUD, _LOUD_STEP, _QUIET_STEP = 0.1, 1e-5, 1e-7
_OLDEST = 40  # chunks behind the newest one; older ones are not read by chance
_TALK, _CYCLE = 12, 17  # chunks of speech in each cycle of speech and silence


class Trace(NamedTuple):
    """Chunks in the order of their arrival."""

    time: np.ndarray  # float64[n], s, when each arrives
    serial: np.ndarray  # int64[n], how many chunks the microphone made before it
    number: np.ndarray  # int64[n], the number that the sender gives it
    lost: int  # chunks that never arrive
    seconds: float  # length of the simulation, s


class Figures(NamedTuple):
    """What a buffer did with a trace; times in s."""

    heard_again_s_max: float  # longest time that arrived sound waited, or was dropped, unheard
    behind_s_max: float  # most sound that had arrived and was not played after a micro-turn
    heard: float  # share of the chunks that arrived which were heard
    lost: int  # numbers passed without a chunk
    never_arrived: int  # chunks that the network lost
    late: int
    reanchored: int
    dropped_s: float
    inserted_s: float


class _Sender(NamedTuple):
    """Chunks as they are sent."""

    time: np.ndarray  # float64[n], s
    number: np.ndarray  # int64[n]


def _steady(count: int, ppm: float = 0.0) -> _Sender:
    """A sender whose clock is fast by `ppm` parts per million."""
    order = np.arange(count)
    return _Sender(0.05 + order * TURN_S / (1 + ppm * 1e-6), order)


def _pauses(rng: np.random.Generator, count: int, jump: bool) -> _Sender:
    """A microphone that pauses; numbers go on where they were, or jump by the pause."""
    time, number = _steady(count)
    starts = np.flatnonzero(rng.random(count) < TURN_S / PAUSE_EVERY_S)
    gaps = np.zeros(count)
    shortest, longest = np.log(PAUSES_S)
    gaps[starts] = np.exp(rng.uniform(shortest, longest, len(starts)))
    gaps[0] = 0.0
    passed = np.cumsum(gaps)
    return _Sender(time + passed, number + jump * np.round(passed / TURN_S).astype(np.int64))


def _reconnects(rng: np.random.Generator, count: int) -> _Sender:
    """A sender that counts from 0 again: soon after the beginning, and every few minutes."""
    time, number = _steady(count)
    starts = np.unique([0, 4, *np.flatnonzero(rng.random(count) < TURN_S / 300)])
    return _Sender(time, number - starts[np.searchsorted(starts, number, side="right") - 1])


def _jitter(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Times of arrival float64[n] with exponential jitter and bursts."""
    time = time + rng.exponential(JITTER_S, len(time))
    starts = np.cumsum(rng.exponential(BURST_EVERY_S, int(time[-1] / BURST_EVERY_S) + 1))
    burst = np.searchsorted(starts, time, side="right") - 1
    end = starts[burst] + BURST_S
    return np.where((burst >= 0) & (time < end), end, time)


def _stall(time: np.ndarray) -> np.ndarray:
    """Times of arrival float64[n] with one stall in the middle."""
    begin = time[len(time) // 2]
    return np.where((time >= begin) & (time < begin + STALL_S), begin + STALL_S, time)


_SENDERS: dict[str, Callable[[np.random.Generator, int], _Sender]] = {
    "perfect": lambda _, count: _steady(count),
    "slow_50": lambda _, count: _steady(count, -50),
    "fast_50": lambda _, count: _steady(count, 50),
    "slow_200": lambda _, count: _steady(count, -200),
    "fast_200": lambda _, count: _steady(count, 200),
    "jitter": lambda _, count: _steady(count),
    "pauses": lambda rng, count: _pauses(rng, count, jump=False),
    "pauses_jump": lambda rng, count: _pauses(rng, count, jump=True),
    "reconnects": _reconnects,
    "stall": lambda _, count: _steady(count),
    "loss": lambda _, count: _steady(count),
    "slow_200_loss": lambda _, count: _steady(count, -200),
    "fast_200_loss": lambda _, count: _steady(count, 200),
}
IMPAIRMENTS = tuple(_SENDERS)


def make_trace(impairment: str, seconds: float, seed: int = 0) -> Trace:
    """Draws the arrivals of a simulation.

    Args:
      impairment: One of `IMPAIRMENTS`.
      seconds: Length in s.
      seed: Seed of all that is random.

    Raises:
      ValueError: The impairment is unknown.
    """
    if impairment not in _SENDERS:
        raise ValueError(f"impairment: got {impairment!r}, wanted one of {', '.join(IMPAIRMENTS)}")
    rng = np.random.default_rng(seed)
    time, number = _SENDERS[impairment](rng, int(seconds / TURN_S))
    if impairment == "jitter":
        time = _jitter(rng, time)
    if impairment == "stall":
        time = _stall(time)
    arrives = rng.random(len(time)) >= LOSS * ("loss" in impairment)
    order = np.argsort(time, kind="stable")
    order = order[arrives[order] & (time[order] < seconds)]
    return Trace(time[order], order, number[order], int(np.sum(~arrives)), seconds)


def marked_chunk(serial: int) -> np.ndarray:
    """The chunk float32[3200] with a serial number; chunks of speech and of silence take turns."""
    code = serial % _CODES + 1
    loud = serial % _CYCLE < _TALK
    return np.full(TURN, _LOUD + code * _LOUD_STEP if loud else code * _QUIET_STEP, np.float32)


def read_serials(pcm: np.ndarray, newest: int) -> np.ndarray:
    """The serial numbers that sound tells.

    Args:
      pcm: float32[n], output of a buffer that was given marked chunks.
      newest: The newest serial number that it may tell.

    Returns:
      int64[n], -1 for samples that tell none.
    """
    values = pcm.astype(np.float64)
    codes = np.where(
        values > _LOUD - _LOUD_STEP, (values - _LOUD) / _LOUD_STEP, values / _QUIET_STEP
    )
    whole = np.round(codes)
    told = (np.abs(codes - whole) < 0.02) & (whole >= 1) & (whole <= _CODES)
    serials = newest - (newest - (whole.astype(np.int64) - 1)) % _CODES
    return np.where(told & (serials >= 0), serials, -1)


def simulate(trace: Trace, phase_s: float = 0.1) -> Figures:
    """Plays a trace to a buffer.

    Args:
      trace: From `make_trace`.
      phase_s: Time of the first micro-turn, s.
    """
    clock = [0.0]
    buffer = PlayoutBuffer(TURN, RATE, lambda: clock[0])
    waiting: collections.deque[tuple[int, float]] = collections.deque()  # serial and arrival
    seen = np.zeros(int(trace.serial.max()) + 1, np.bool_)
    at, newest, last, longest, behind = 0, -1, -1, 0.0, 0.0
    for turn in range(int((trace.seconds - phase_s) / TURN_S)):
        now = phase_s + turn * TURN_S
        while at < len(trace.time) and trace.time[at] <= now:
            serial = int(trace.serial[at])
            clock[0] = float(trace.time[at])
            buffer.put(int(trace.number[at]), marked_chunk(serial))
            newest = max(newest, serial)
            if serial > last:
                waiting.append((serial, clock[0]))
            at += 1
        clock[0] = now
        serials = read_serials(buffer.take()[39::40], newest)
        told = serials[(serials >= 0) & (serials > newest - _OLDEST)]
        seen[told] = True
        last = max(last, int(told.max(initial=-1)))
        if serials[-1] == last:  # no sound in place of a loss
            behind = max(behind, (newest - last) * TURN_S)
        longest = max(longest, now - waiting[0][1] if waiting else 0.0)
        while waiting and waiting[0][0] <= last:
            waiting.popleft()
        behind = max(behind, buffer.behind_s)
    return Figures(
        heard_again_s_max=round(longest, 3),
        behind_s_max=round(behind, 3),
        heard=float(seen[trace.serial[:at]].mean()),
        lost=buffer.lost,
        never_arrived=trace.lost,
        late=buffer.late,
        reanchored=buffer.reanchored,
        dropped_s=round(buffer.dropped_s, 3),
        inserted_s=round(buffer.inserted_s, 3),
    )
