"""`ReorderBuffer`: puts numbered chunks of PCM from a network in order, one per micro-turn."""

import threading

import numpy as np

HORIZON = 50  # micro-turns that chunks may be ahead: ten seconds
_REMEMBERED = 256  # micro-turns without a chunk, to distinguish late chunks from doubled ones


class ReorderBuffer:
    """Puts chunks in order; one thread may fill it while another one empties it."""

    def __init__(self, samples: int, turn: int = 0) -> None:
        """Makes an empty buffer.

        Args:
          samples: Samples of a micro-turn.
          turn: Number of the next micro-turn.
        """
        self._samples = samples
        self._lock = threading.Lock()
        self._next = turn
        self._newest = turn - 1
        self._chunks: dict[int, np.ndarray] = {}
        self._missed: dict[int, None] = {}
        self.late = 0  # chunks that arrived after their micro-turn, which took silence
        self.lost = 0  # micro-turns that took silence
        self.doubled = 0  # chunks that had arrived before
        self.reordered = 0  # chunks that arrived after later ones

    def put(self, index: int, pcm: np.ndarray) -> None:
        """Takes a chunk from the network.

        Args:
          index: Number of the chunk's micro-turn, counted from 0.
          pcm: float32[samples] in [-1, 1], already checked; must not be changed afterwards.

        Raises:
          ValueError: The index is not an integer or is out of range; the buffer has not changed.
        """
        integer = isinstance(index, int | np.integer) and not isinstance(index, bool)
        with self._lock:
            if not integer or not 0 <= index < self._next + HORIZON:
                raise ValueError(
                    f"index: got {index!r}, wanted the number of a micro-turn below "
                    f"{self._next + HORIZON}; count from 0, one every 200 ms"
                )
            if index < self._next:
                late = self._missed.pop(int(index), 0) is None
                self.late += late
                self.doubled += not late
            elif index in self._chunks:
                self.doubled += 1
            else:
                self.reordered += index < self._newest
                self._newest = max(self._newest, int(index))
                self._chunks[int(index)] = pcm

    def take(self) -> np.ndarray:
        """The next micro-turn's PCM float32[samples]; silence if it has not arrived."""
        with self._lock:
            chunk = self._chunks.pop(self._next, None)
            if chunk is None:
                self.lost += 1
                self._missed[self._next] = None
                if len(self._missed) > _REMEMBERED:
                    del self._missed[next(iter(self._missed))]
                chunk = np.zeros(self._samples, np.float32)
            self._next += 1
        return chunk

    def skip(self) -> None:
        """Skips a micro-turn whose PCM was passed elsewhere."""
        with self._lock:
            self._chunks.pop(self._next, None)
            self._next += 1
