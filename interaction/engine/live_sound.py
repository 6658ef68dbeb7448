"""A sound card's two sides on threads of their own, so that neither its waits nor its clock count.

The microphone fills the session's playout buffer, which follows its clock. The loudspeaker has a
short queue; if its clock is slower than the engine's, silence is left out of it.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable

import numpy as np

from interaction import logs
from interaction.engine.session import Session
from interaction.types import Reply

_log = logging.getLogger(__name__)
_SILENT, _FULL = 2, 3  # waiting replies beyond which silence, and anything, is left out


class Microphone:
    """Reads a source that may block, and puts its chunks into a session's playout buffer."""

    def __init__(self, session: Session, source: Iterable[np.ndarray]) -> None:
        """Starts to read.

        Args:
          session: The session that hears the source.
          source: Iterable of PCM float32[turn_samples] in [-1, 1]. A chunk that is unusable is
            refused alone. At its end the session's audio ends.
        """
        self._session, self._source = session, source
        self.error: BaseException | None = None  # of the source
        threading.Thread(target=self._run, name="microphone", daemon=True).start()

    def _run(self) -> None:
        try:
            for pcm in self._source:
                if self._session.closed:
                    return
                self._session.hear(pcm)
        except BaseException as error:
            self.error = error
        finally:
            self._session.end_audio()


class Loudspeaker:
    """Passes replies to a sink that may block."""

    def __init__(self, sink: Callable[[Reply], object]) -> None:
        """Starts without replies.

        Args:
          sink: Function that takes each reply, and waits until the device has room for it.
        """
        self._sink = sink
        self._waiting: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self.unheard = 0  # replies with speech that were left out
        self.error: BaseException | None = None  # of the sink
        self._thread = threading.Thread(target=self._run, name="loudspeaker", daemon=True)
        self._thread.start()

    def put(self, reply: Reply) -> None:
        """Takes a reply; leaves it out if too many wait."""
        waiting, speech = self._waiting.qsize(), bool(np.any(reply.audio))
        if waiting >= _FULL or (waiting >= _SILENT and not speech):
            self.unheard += speech
            return
        self._waiting.put(reply)

    def close(self, wait_s: float = 2.0) -> None:
        """Plays what waits, at most for a time in s."""
        self._waiting.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (reply := self._waiting.get()) is not None:
            try:
                self._sink(reply)
            except BaseException as error:
                self.error = error
                logs.warn(_log, "the sink failed: %s", repr(error))
                return
