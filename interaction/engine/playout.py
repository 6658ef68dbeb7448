"""`PlayoutBuffer`: numbered chunks of PCM from a network or a sound card, played every 200 ms.

The buffer measures when chunks arrive relative to the micro-turns, in micro-turns of the engine: a
chunk's lag is its time of arrival minus its number. A chunk that has not come when it is needed is
waited for, with a continuation of the last sound; this is how the delay grows. The delay shrinks by
one chunk when each chunk of the last minute came more than a chunk too early, and grows by one
before the slow clock of a sender makes chunks late. Both happen in silence, else by splices of one
pitch period. A sender that is exactly in time is heard bit for bit.
"""

import collections
import itertools
import math
import operator
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from interaction.engine import splices
from interaction.engine.splices import Continuation

BEHIND_S = 0.6  # s, most sound that waits after a micro-turn; more is dropped
_MARGIN = 0.2  # micro-turns by which chunks come early enough, once one was late
_WINDOW = 300  # chunks whose lags are remembered: one minute
_STEADY = 1e-3  # micro-turns a minute by which a steady clock may change: 3 ppm
_RECENT = 10  # chunks among which one is taken to have come without jitter
_AHEAD = 5  # numbers that may be missing beyond those of the time that has passed
_STRANGERS, _MOST_STRANGERS = 3, 64  # chunks in a row that begin another numbering; most kept
_PATIENCE = 50  # micro-turns to wait for silence before a splice in sound
# Most chunks kept, and most numbers that were passed without one (to tell late from doubled ones).
_REMEMBERED = 256
_QUIET = 1e-3  # root mean square that is always silence


class _Stranger(NamedTuple):
    """A chunk that does not fit the numbering."""

    index: int
    pcm: np.ndarray  # float32[samples]
    time: float  # micro-turns
    late: int  # what it was counted as
    doubled: int


class PlayoutBuffer:
    """Gives chunks in order, one per micro-turn; one thread may fill it while another empties it.

    Attributes:
      late: Chunks that arrived after their number was passed.
      lost: Numbers that were passed without a chunk, those of late chunks included.
      doubled: Chunks that had arrived before.
      reordered: Chunks that arrived after later ones, in time.
      reanchored: How often a sender began another numbering.
      inserted_s: s of sound that was put in beside what was sent.
      dropped_s: s of sound that arrived and was left out.
      delay_s: s, the delay that the arrivals of the last minute ask for.
      behind_s: s of sound that had arrived and was not played, after the last micro-turn.
      ended: Whether the source was closed and everything is played.
    """

    def __init__(
        self, samples: int, rate: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Makes an empty buffer, which gives silence until the first chunk arrives.

        Args:
          samples: Samples of a micro-turn.
          rate: Samples a second.
          clock: Function that returns the time in s from any origin.
        """
        self._samples, self._rate, self._clock = samples, rate, clock
        self._lock = threading.Lock()
        self._chunks: dict[int, np.ndarray] = {}  # by place: the number in one lasting numbering
        self._missed: dict[int, None] = {}  # places that were passed without a chunk
        self._offset: int | None = None  # place minus number; None before the first chunk
        self._newest = -1  # newest place
        self._newest_time = 0.0  # when the newest chunk arrived, in micro-turns
        self._play = 0  # next sample, counted from place 0
        self._held = 0  # samples that were put in while nothing had arrived
        self._strangers: list[_Stranger] = []
        self._takes, self._taken_at = 0, 0.0  # micro-turns so far; time of the last one, s
        self._lags: collections.deque[float] = collections.deque(maxlen=_WINDOW)  # micro-turns
        self._margin = 0.0  # micro-turns; 0 until a chunk was late
        self._edit, self._waited = 0, 0  # samples to leave out (below 0: repeat), since when
        self._levels: collections.deque[float] = collections.deque(maxlen=_PATIENCE)
        self._past = np.zeros(round(splices.PAST_S * rate), np.float32)  # last sound
        self._repair: Continuation | None = None  # sound of the loss that goes on
        self._closed = self.ended = False
        self.late = self.lost = self.doubled = self.reordered = self.reanchored = 0
        self.inserted_s = self.dropped_s = self.delay_s = self.behind_s = 0.0

    # Arrivals.

    def put(self, index: int | None, pcm: np.ndarray) -> None:
        """Takes a chunk.

        Args:
          index: Number of the chunk in the sender's order; None: the next one.
          pcm: float32[samples] in [-1, 1], already checked; must not be changed afterwards.

        Raises:
          ValueError: The index is no number, or the source was closed; nothing has changed.
        """
        integer = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if index is not None and not (integer and index >= 0):
            raise ValueError(
                f"index: got {index!r}, wanted the number of a chunk; count from 0, one every "
                "200 ms, or pass None for chunks in order"
            )
        with self._lock:
            if self._closed:
                raise ValueError("source: got a chunk after close, wanted none; open a new one")
            now = self._time()
            if index is None:
                return self._accept(self._newest + 1, pcm, now)
            index = operator.index(index)  # a Python integer, which does not overflow
            if self._offset is None:
                self._offset, self._newest_time = -index, now
            self._place(index, pcm, now)

    def close(self) -> None:
        """Ends the source: `take` gives what is left, then `ended` is True."""
        with self._lock:
            self._closed = True
            self.ended = self._end() <= self._play

    def _time(self) -> float:
        """Time in micro-turns of the engine: take n is at n, and until then n is not exceeded."""
        if not self._takes:
            return 0.0
        since = (self._clock() - self._taken_at) * self._rate / self._samples
        return self._takes - 1 + min(max(since, 0.0), 1.0)

    def _place(self, index: int, pcm: np.ndarray, now: float) -> None:
        place = index + (self._offset or 0)
        first = self._play // self._samples
        if not self._takes and first - _AHEAD <= place < first:
            self._play = place * self._samples  # an older chunk, before anything was played
            first = place
        if place - self._newest > _AHEAD + 1 + now - self._newest_time:
            self._suspect(_Stranger(index, pcm, now, late=0, doubled=0))
        elif place < first:
            late = place in self._missed
            if late:
                del self._missed[place]
                self._note_lag(now - place)
                self._margin = _MARGIN
            self._suspect(_Stranger(index, pcm, now, late=int(late), doubled=int(not late)))
        elif place in self._chunks:
            self._suspect(_Stranger(index, pcm, now, late=0, doubled=1))
        else:
            self._accept(place, pcm, now)

    def _suspect(self, stranger: _Stranger) -> None:
        """Begins another numbering if strangers go on while nothing else comes."""
        self.late += stranger.late
        self.doubled += stranger.doubled
        row = self._strangers
        if row and stranger.index == row[-1].index:
            return
        if (row and not 0 < stranger.index - row[-1].index <= _AHEAD) or len(
            row
        ) == _MOST_STRANGERS:
            row.clear()
        row.append(stranger)
        if len(row) >= _STRANGERS and stranger.time - row[0].time >= 1.0:
            self._strangers = []
            self._offset = self._newest + 1 - row[0].index
            self.reanchored += 1
            for one in row:
                self.late -= one.late
                self.doubled -= one.doubled
                self._accept(one.index + self._offset, one.pcm, one.time)

    def _accept(self, place: int, pcm: np.ndarray, now: float) -> None:
        self._strangers.clear()
        self._offset = self._offset or 0
        if self._held and place == self._play // self._samples:
            self._margin = _MARGIN
        self._chunks[place] = pcm
        self.reordered += place < self._newest
        self._newest = max(self._newest, place)
        self._newest_time = now
        self._note_lag(now - place)
        if len(self._chunks) > _REMEMBERED:
            self._limit()  # nobody takes

    def _note_lag(self, lag: float) -> None:
        """Remembers a lag, unless no allowed delay serves it. Time begins with the first take."""
        if self._takes and lag <= self._delay() + BEHIND_S * self._rate / self._samples:
            self._lags.append(lag)

    def _end(self) -> int:
        return (self._newest + 1) * self._samples

    def _delay(self) -> int:
        """Time of the next take minus the newest place that it needs, in micro-turns."""
        return self._takes + 1 - math.ceil((self._play + self._samples) / self._samples)

    # Micro-turns.

    def take(self) -> np.ndarray:
        """The next micro-turn's PCM float32[samples]."""
        with self._lock:
            if self._offset is None:
                pcm = np.zeros(self._samples, np.float32)
            else:
                pcm = self._next()
                self.behind_s = max(self._end() - self._play, 0) / self._rate
            self.ended = self._closed and self._end() <= self._play
            self._takes += 1
            self._taken_at = self._clock()
            return pcm

    def _next(self) -> np.ndarray:
        """The next micro-turn's PCM float32[samples] once the numbering has begun."""
        self._settle()
        self._limit()
        spliced = self._spliced()
        if spliced is not None:
            return self._sound([spliced])
        ready = min(self._samples, max(self._end() - self._play, 0))
        parts = self._parts(ready)
        self._advance(self._play + ready)
        if ready < self._samples:
            parts.append(self._samples - ready)
            self._held += self._samples - ready
            self._edit = self._waited = 0
        return self._sound(parts)

    def _settle(self) -> None:
        """After a wait, leaves out what is missing as long as the wait: it was filled already."""
        if self._held and self._end() > self._play:
            first = self._first(self._play // self._samples)
            gap = max(first * self._samples - self._play, 0)
            self.inserted_s += max(self._held - gap, 0) / self._rate
            self._advance(self._play + min(gap, self._held))
            self._held = 0

    def _limit(self) -> None:
        """Drops the oldest sound if more than `BEHIND_S` would wait after this micro-turn."""
        target = self._end() - self._samples - round(BEHIND_S * self._rate)
        if target <= self._play:
            return
        target = max(target, self._first(target // self._samples) * self._samples)
        passed = self._parts(target - self._play)
        received = [len(part) for part in passed if not isinstance(part, int)]
        self.dropped_s += sum(received) / self._rate
        self._advance(target)
        self._edit = self._waited = 0
        self._repair = self._repair or Continuation(self._past, self._rate)
        most = self._delay() - self._margin  # a longer delay is not allowed
        self._lags = collections.deque((min(lag, most) for lag in self._lags), maxlen=_WINDOW)

    def _first(self, place: int) -> int:
        """The first place from `place` on with a chunk; there must be one."""
        while place not in self._chunks:
            place += 1
        return place

    def _parts(self, samples: int) -> list[np.ndarray | int]:
        """The next samples: sound float32[n], or the number of missing samples."""
        parts: list[np.ndarray | int] = []
        at, stop = self._play, self._play + samples
        while at < stop:
            place, begin = divmod(at, self._samples)
            end = min(begin + stop - at, self._samples)
            chunk = self._chunks.get(place)
            parts.append(end - begin if chunk is None else chunk[begin:end])
            at += end - begin
        return parts

    def _advance(self, play: int) -> None:
        for place in range(self._play // self._samples, play // self._samples):
            if self._chunks.pop(place, None) is None:
                self.lost += 1
                self._missed[place] = None
                if len(self._missed) > _REMEMBERED:
                    del self._missed[next(iter(self._missed))]
        self._play = play

    def _sound(self, parts: list[np.ndarray | int]) -> np.ndarray:
        """PCM float32[samples] from parts, with a continuation in place of those that miss."""
        whole, out = self._repair is None, []
        for part in parts:
            if isinstance(part, int):
                whole = False
                self._repair = self._repair or Continuation(self._past, self._rate)
                part = self._repair.make(part)
            elif self._repair is not None:
                part, self._repair = self._repair.lead_into(part), None
            self._past = np.concatenate([self._past, part])[-len(self._past) :]
            out.append(part)
        pcm = out[0] if len(out) == 1 else np.concatenate(out)
        if whole:
            self._levels.append(_loudest(pcm))
        return pcm

    # Changes of the delay.

    def _wish(self) -> int:
        """Samples to leave out so that one chunk less waits; below 0, to repeat; 0 for none."""
        if not self._lags:
            return 0
        delay, latest = self._delay(), max(self._lags)
        earliest = min(self._lags[-back] for back in range(1, min(_RECENT, len(self._lags)) + 1))
        # A slow clock makes chunks later in the next minute by as much as in the last one. A larger
        # difference is a pause.
        slower = earliest - min(itertools.islice(self._lags, _RECENT))
        margin = max(self._margin, slower if _STEADY < slower < _MARGIN else 0.0)
        turn_s = self._samples / self._rate
        self.delay_s = min((latest - earliest + margin) * turn_s, BEHIND_S)
        beyond = self._play % self._samples
        if delay - latest > 1 + _MARGIN + margin:
            return self._samples - beyond
        # One chunk more may wait if even then the earliest ones keep to the limit.
        allowed = delay + 1 - earliest < BEHIND_S / turn_s + 1
        if delay - latest < margin and allowed:
            return -(beyond or self._samples)
        return 0

    def _spliced(self) -> np.ndarray | None:
        """The next PCM float32[samples] with a splice; None if none is due or it has to wait."""
        edit = self._edit or self._wish()
        self._waited = self._waited + 1 if edit else 0
        half = self._samples // 2
        step = max(-half, min(edit, half))
        parts = self._parts(self._samples + max(step, 0))
        if not edit or any(isinstance(part, int) for part in parts):
            return None
        pcm = np.concatenate(parts)
        if not self._quiet(pcm):
            if self._waited <= _PATIENCE:
                return None
            step = splices.pitch_shift(pcm, half, 1 if edit > 0 else -1, self._rate)
            if step > edit > 0:
                self._edit = 0  # less than a period: it stays
                return None
        self._advance(self._play + self._samples + step)
        self._edit = edit - step if (edit - step) * edit > 0 else 0
        self.dropped_s += max(step, 0) / self._rate
        self.inserted_s += max(-step, 0) / self._rate
        return splices.splice(pcm, half, step, self._rate)[: self._samples]

    def _quiet(self, pcm: np.ndarray) -> bool:
        """Whether PCM float32[n] is silence beside the sound of the last seconds."""
        if not self._levels:
            return False
        floor = min(1.5 * min(self._levels), 0.25 * max(self._levels))
        return _loudest(pcm) <= max(_QUIET, floor)


def _loudest(pcm: np.ndarray) -> float:
    """Root mean square of the loudest twentieth of PCM float32[n]."""
    frames = pcm[: len(pcm) // 20 * 20].reshape(20, -1)
    return float(np.sqrt(np.square(frames).mean(axis=1).max()))
