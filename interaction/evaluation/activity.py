"""Detects speech by its energy, and computes with intervals of time.

Intervals are float64[k, 2] arrays of (start, end) in s, sorted and disjoint.
"""

import numpy as np

FRAME_S = 0.02  # s, length of an energy frame
THRESHOLD_DBFS = -45.0  # dBFS, root mean square above which a frame is speech
BRIDGE_S = 0.1  # s; shorter silence belongs to a word
SHORTEST_S = 0.06  # s; shorter sound is a click
MERGE_S = 0.5  # s; shorter silence belongs to an utterance (Full-Duplex-Bench v1.5)


def no_intervals() -> np.ndarray:
    """No intervals, float64[0, 2]."""
    return np.zeros((0, 2))


def active_intervals(
    pcm: np.ndarray, sample_rate: int = 16_000, offset_s: float = 0.0
) -> np.ndarray:
    """Finds sound in a signal by the energy of 20 ms frames.

    Args:
      pcm: float32[n] or float64[n] in [-1, 1].
      sample_rate: Of `pcm`, Hz.
      offset_s: Time of the first sample, s.

    Returns:
      Intervals, float64[k, 2] in s, after gaps below 0.1 s are closed and then sounds below 0.06 s
      dropped.
    """
    frame = round(FRAME_S * sample_rate)
    count = len(pcm) // frame
    frames = np.asarray(pcm[: count * frame], np.float64).reshape(count, frame)
    power = np.mean(np.square(frames), axis=1) if count else np.zeros(0)
    loud = np.concatenate([[False], power > 10.0 ** (THRESHOLD_DBFS / 10.0), [False]])
    edges = np.flatnonzero(loud[1:] != loud[:-1])
    raw = edges.reshape(-1, 2) * (frame / sample_rate) + offset_s
    bridged = merge(raw, BRIDGE_S)
    return bridged[bridged[:, 1] - bridged[:, 0] > SHORTEST_S - 1e-9]


def merge(intervals: np.ndarray, gap_s: float) -> np.ndarray:
    """Joins intervals that are less than a gap apart.

    Args:
      intervals: float64[k, 2], s.
      gap_s: The gap, s.

    Returns:
      float64[j, 2], s.
    """
    if len(intervals) == 0:
        return no_intervals()
    apart = intervals[1:, 0] - intervals[:-1, 1] >= gap_s - 1e-9
    starts = intervals[np.concatenate([[True], apart]), 0]
    ends = intervals[np.concatenate([apart, [True]]), 1]
    return np.stack([starts, ends], axis=1)


def union(intervals: np.ndarray) -> np.ndarray:
    """Sorts intervals and joins those that overlap.

    Args:
      intervals: float64[k, 2] in s, in any order.

    Returns:
      float64[j, 2], s.
    """
    united: list[list[float]] = []
    for start, end in sorted(map(tuple, np.asarray(intervals, np.float64).reshape(-1, 2))):
        if united and start <= united[-1][1]:
            united[-1][1] = max(united[-1][1], end)
        elif end > start:
            united.append([start, end])
    return np.asarray(united, np.float64).reshape(-1, 2)


def subtract(intervals: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The parts of intervals outside of holes.

    Args:
      intervals: float64[k, 2], s.
      holes: float64[h, 2] in s, in any order.

    Returns:
      float64[j, 2], s.
    """
    left: list[tuple[float, float]] = []
    holes = union(holes)
    for start, end in intervals:
        for low, high in holes:
            if high <= start or low >= end:
                continue
            if low > start:
                left.append((start, low))
            start = max(start, high)
        if end > start:
            left.append((start, end))
    return np.asarray(left, np.float64).reshape(-1, 2)


def overlap(intervals: np.ndarray, start: float, end: float) -> float:
    """The time that intervals have in common with another one, s.

    Args:
      intervals: float64[k, 2], s.
      start: Start of the other one, s.
      end: Its end, s.
    """
    if len(intervals) == 0 or end <= start:
        return 0.0
    low, high = np.maximum(intervals[:, 0], start), np.minimum(intervals[:, 1], end)
    return float(np.maximum(high - low, 0.0).sum())


def covering(intervals: np.ndarray, time: float) -> tuple[float, float] | None:
    """The interval in which a time lies, start <= time < end; None if there is none.

    Args:
      intervals: float64[k, 2], s.
      time: s.
    """
    hit = np.flatnonzero((intervals[:, 0] <= time) & (time < intervals[:, 1]))
    return (float(intervals[hit[0], 0]), float(intervals[hit[0], 1])) if len(hit) else None


def first_start(intervals: np.ndarray, after: float, until: float) -> float | None:
    """The first start of an interval with after < start <= until, s; None if there is none.

    Args:
      intervals: float64[k, 2], s.
      after: s.
      until: s.
    """
    hit = np.flatnonzero((intervals[:, 0] > after) & (intervals[:, 0] <= until))
    return float(intervals[hit[0], 0]) if len(hit) else None
