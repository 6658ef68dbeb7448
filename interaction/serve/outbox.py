"""What waits to be sent to a client; a slow reader loses speech, and is told."""

import asyncio
import collections
import json
import threading
from typing import Any, NamedTuple

import numpy as np

from interaction.serve.limits import Limits


class Speech(NamedTuple):
    """What the model says in a micro-turn, and the event that brings it."""

    pcm: np.ndarray  # float32[turn_samples] in [-1, 1]
    event: dict[str, Any]  # without its sound


Item = str | Speech | None  # JSON of an event; speech; None: the end


class Outbox:
    """A queue that the engine's thread fills, and a task of the server's loop empties."""

    def __init__(self, limits: Limits) -> None:
        """Starts empty; to be made in the loop."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._limits = limits
        self._items: collections.deque[Item] = collections.deque()
        self._ready = asyncio.Event()
        self._speech = 0  # `Speech` among the items
        self._size = 0  # characters of the events
        self.unheard = 0  # `Speech` that was left out
        self.overrun = asyncio.Event()  # set when even events are too many; they are dropped

    def put(self, item: dict[str, Any] | Speech | None) -> None:
        """Adds an event, speech or the end, from any thread."""
        ready: Item = json.dumps(item) if isinstance(item, dict) else item
        if threading.get_ident() == self._thread:
            self._add(ready)
        else:
            self._loop.call_soon_threadsafe(self._add, ready)

    def _add(self, item: Item) -> None:
        if isinstance(item, Speech):
            self._speech += 1
            if self._speech > self._limits.audio_waiting:
                first = next(one for one in self._items if isinstance(one, Speech))
                self._items = collections.deque(one for one in self._items if one is not first)
                self._speech -= 1
                self.unheard += 1
        elif item is not None:
            self._size += len(item)
            events = len(self._items) - self._speech
            if events >= self._limits.events_waiting or self._size > self._limits.event_bytes:
                self.overrun.set()
                self._items.clear()
                self._speech = self._size = 0
                return
        self._items.append(item)
        self._ready.set()

    async def take(self) -> Item:
        """The oldest item; waits for one."""
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        item = self._items.popleft()
        self._speech -= isinstance(item, Speech)
        self._size -= len(item) if isinstance(item, str) else 0
        return item
