"""When somebody speaks: an energy detector on PCM, and arithmetic on intervals of time.

Intervals are float64[k, 2] arrays of (start, end) in seconds, sorted and disjoint.
"""

import numpy as np

FRAME_S = 0.02  # length of an energy frame, seconds
THRESHOLD_DBFS = -45.0  # RMS above which a frame is speech
BRIDGE_S = 0.1  # silence shorter than this is part of a word
SHORTEST_S = 0.06  # sound shorter than this is a click
MERGE_S = 0.5  # silence shorter than this is part of an utterance (Full-Duplex-Bench v1.5)


def no_intervals() -> np.ndarray:
    """The empty set of intervals, float64[0, 2]."""
    return np.zeros((0, 2))


def active_intervals(
    pcm: np.ndarray, sample_rate: int = 16_000, offset_s: float = 0.0
) -> np.ndarray:
    """Finds sound in a signal by the energy of 20 ms frames.

    Args:
      pcm: float[n] in [-1, 1].
      sample_rate: Hz.
      offset_s: time of the first sample, seconds.

    Returns:
      float64[k, 2] in seconds: gaps below 0.1 s are bridged, then sounds below 0.06 s dropped.
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
    """Joins intervals that are less than `gap_s` apart; float64[k, 2] -> float64[j, 2]."""
    if len(intervals) == 0:
        return no_intervals()
    apart = intervals[1:, 0] - intervals[:-1, 1] >= gap_s - 1e-9
    starts = intervals[np.concatenate([[True], apart]), 0]
    ends = intervals[np.concatenate([apart, [True]]), 1]
    return np.stack([starts, ends], axis=1)


def union(intervals: np.ndarray) -> np.ndarray:
    """Sorts and unites overlapping intervals; float64[k, 2] -> float64[j, 2]."""
    united: list[list[float]] = []
    for start, end in sorted(map(tuple, np.asarray(intervals, np.float64).reshape(-1, 2))):
        if united and start <= united[-1][1]:
            united[-1][1] = max(united[-1][1], end)
        elif end > start:
            united.append([start, end])
    return np.asarray(united, np.float64).reshape(-1, 2)


def subtract(intervals: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """What is in `intervals` and not in `holes`; both float64[k, 2], any order in `holes`."""
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
    """Seconds of `intervals` that lie inside [start, end]."""
    if len(intervals) == 0 or end <= start:
        return 0.0
    low, high = np.maximum(intervals[:, 0], start), np.minimum(intervals[:, 1], end)
    return float(np.maximum(high - low, 0.0).sum())


def covering(intervals: np.ndarray, time: float) -> tuple[float, float] | None:
    """The interval with start <= time < end, if there is one."""
    hit = np.flatnonzero((intervals[:, 0] <= time) & (time < intervals[:, 1]))
    return (float(intervals[hit[0], 0]), float(intervals[hit[0], 1])) if len(hit) else None


def first_start(intervals: np.ndarray, after: float, until: float) -> float | None:
    """The first start with after < start <= until, if there is one."""
    hit = np.flatnonzero((intervals[:, 0] > after) & (intervals[:, 0] <= until))
    return float(intervals[hit[0], 0]) if len(hit) else None
