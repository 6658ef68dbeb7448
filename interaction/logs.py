"""Logs of a live thread, written on another thread, since a log may wait for a disk."""

import atexit
import logging
import queue
import sys
import threading
from typing import Any

_ROOM = 1_000  # lines that may wait; further ones are dropped
_waiting: queue.SimpleQueue = queue.SimpleQueue()
_starting = threading.Lock()
_thread: threading.Thread | None = None


def warn(logger: logging.Logger, text: str, *args: Any, exc_info: bool = False) -> None:  # noqa: ANN401
    """Logs a warning from another thread; returns at once.

    Args:
      logger: Logger whose handlers run on the other thread.
      text: Format string of the warning.
      *args: Values for the format string; they must not be changed afterwards.
      exc_info: Whether to add the exception that is being handled.
    """
    _put(logger, logging.WARNING, text, args, sys.exc_info() if exc_info else None)


def info(logger: logging.Logger, text: str, *args: Any) -> None:  # noqa: ANN401
    """The same for a line that is no warning."""
    _put(logger, logging.INFO, text, args, None)


def _put(logger: logging.Logger, level: int, text: str, args: tuple, error: Any) -> None:  # noqa: ANN401
    if _waiting.qsize() < _ROOM:
        _waiting.put((logger, level, text, args, error))
    if _thread is None or not _thread.is_alive():
        _start()


def flush(wait_s: float = 1.0) -> None:
    """Waits until the lines so far are written, at most `wait_s` seconds."""
    if _thread is not None and _thread.is_alive():
        done = threading.Event()
        _waiting.put(done)
        done.wait(wait_s)


def _start() -> None:
    global _thread
    with _starting:
        if _thread is None:
            atexit.register(flush)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_write, name="warnings", daemon=True)
            _thread.start()


def _write() -> None:
    while True:
        item = _waiting.get()
        if isinstance(item, threading.Event):
            item.set()
            continue
        logger, level, text, args, error = item
        try:
            logger.log(level, text, *args, exc_info=error)
        except Exception:  # a broken handler must not stop later warnings
            continue
        finally:
            del item, error  # a traceback keeps arrays alive
