"""`ClientAgent`: a background agent whose answers come from the client of a connection."""

import threading
from collections.abc import Callable, Sequence

from interaction.background.agent import DONE, TEXT, THINKING, BackgroundAgent, Event, MicroTurn


class ClientAgent(BackgroundAgent):
    """Passes delegations to a client, and its words back.

    A correction makes the delegation a new one for the client, whose words for the old one are
    refused.
    """

    def __init__(
        self, created: Callable[[str, str], object], dropped: Callable[[str], object]
    ) -> None:
        """Starts without delegations.

        Args:
          created: Called with id and request of each delegation that waits for an answer.
          dropped: Called with the id of each one whose answer is no longer wanted.
        """
        self._created, self._dropped = created, dropped
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}  # id -> number
        self._asked = 0
        self._events: list[Event] = []

    def observe(self, turn: MicroTurn) -> None:
        """See `BackgroundAgent`; the client hears the session itself."""

    def ask(self, delegation: int, request: str) -> None:
        """See `BackgroundAgent`."""
        with self._lock:
            self._asked += 1
            name = f"delegation_{self._asked}"
            self._open[name] = delegation
        self._created(name, request)

    def update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """See `BackgroundAgent`."""
        self.cancel(delegation)
        self.ask(delegation, corrected(request, updates))

    def cancel(self, delegation: int) -> None:
        """See `BackgroundAgent`."""
        with self._lock:
            gone = [name for name, number in self._open.items() if number == delegation]
            for name in gone:
                del self._open[name]
        for name in gone:
            self._dropped(name)

    def events(self) -> list[Event]:
        """See `BackgroundAgent`."""
        with self._lock:
            events, self._events = self._events, []
        return events

    # From the client's side.

    def answer(self, name: str, text: str) -> bool:
        """Takes the words for a delegation, which ends; False if it waits for none."""
        with self._lock:
            number = self._open.pop(name, None)
            if number is not None:
                self._events += [Event(number, TEXT, text), Event(number, DONE)]
        return number is not None

    def think(self, name: str, text: str) -> bool:
        """Takes progress of a delegation, for the record; False if it waits for no answer."""
        with self._lock:
            number = self._open.get(name)
            if number is not None:
                self._events.append(Event(number, THINKING, text))
        return number is not None


def corrected(request: str, updates: Sequence[str]) -> str:
    """A request with its corrections, in words."""
    return f"{request} (corrected: {'; '.join(updates)})"
