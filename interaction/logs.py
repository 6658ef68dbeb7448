"""Warnings of a live thread, written by another one: a log may wait for a disk, or for a reader."""

import atexit
import logging
import queue
import sys
import threading
from typing import Any

_ROOM = 1_000  # warnings that wait; more are dropped
_waiting: queue.SimpleQueue = queue.SimpleQueue()
_starting = threading.Lock()
_thread: threading.Thread | None = None


def warn(logger: logging.Logger, text: str, *args: Any, exc_info: bool = False) -> None:  # noqa: ANN401
    """`logger.warning`, soon, and without waiting.

    Args:
      logger: Its handlers run on another thread.
      text: With a place for each of `args`.
      args: Values; nobody changes them any more.
      exc_info: Whether the exception that is being handled belongs to it.
    """
    if _waiting.qsize() < _ROOM:
        _waiting.put((logger, text, args, sys.exc_info() if exc_info else None))
    if _thread is None or not _thread.is_alive():
        _start()


def flush(wait_s: float = 1.0) -> None:
    """Waits until what was warned of is written, at most so many seconds."""
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
        logger, text, args, error = item
        try:
            logger.warning(text, *args, exc_info=error)
        except Exception:  # of a handler that is broken; the next one may do
            continue
        finally:
            del item, error  # a traceback holds arrays
