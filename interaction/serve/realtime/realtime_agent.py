"""`RealtimeAgent`: asks the client's function where there is one, otherwise the server's agent."""

from collections.abc import Callable, Sequence

from interaction.background.agent import FAILED, BackgroundAgent, Event, MicroTurn
from interaction.serve.client_agent import ClientAgent, corrected


class RealtimeAgent(BackgroundAgent):
    """Passes each delegation to the client or to another agent.

    Attributes:
      client: Takes the client's answers.
      called: Called with id and request of each delegation that the client is to answer.
      by_client: Whether new delegations go to the client; it may change at any time.
    """

    def __init__(self, server: BackgroundAgent | None) -> None:
        """Starts without delegations.

        Args:
          server: Answers here; None: delegations fail while they do not go to the client.
        """
        self.client = ClientAgent(self._call, lambda _: None)  # the protocol has no word for it
        self.called: Callable[[str, str], object] = lambda _, __: None
        self._server = server
        self._takers: dict[int, BackgroundAgent] = {}  # by number of the delegation
        self._failed: list[Event] = []
        self.by_client = False

    def _call(self, name: str, request: str) -> None:
        self.called(name, request)

    def observe(self, turn: MicroTurn) -> None:
        """See `BackgroundAgent`."""
        if self._server is not None:
            self._server.observe(turn)

    def ask(self, delegation: int, request: str) -> None:
        """See `BackgroundAgent`."""
        taker = self.client if self.by_client else self._server
        if taker is None:
            text = "there is no background model here, and the client has no function"
            self._failed.append(Event(delegation, FAILED, text))
        else:
            self._takers[delegation] = taker
            taker.ask(delegation, request)

    def fits(self, request: str, correction: str) -> bool:
        """See `BackgroundAgent`."""
        if self.by_client or self._server is None:
            return self.client.fits(request, correction)
        return self._server.fits(request, correction)

    def update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """See `BackgroundAgent`."""
        if taker := self._takers.get(delegation):
            taker.update(delegation, request, updates)
        else:
            self.ask(delegation, corrected(request, updates))

    def cancel(self, delegation: int) -> None:
        """See `BackgroundAgent`."""
        if taker := self._takers.get(delegation):
            taker.cancel(delegation)

    def events(self) -> list[Event]:
        """See `BackgroundAgent`."""
        failed, self._failed = self._failed, []
        server = [] if self._server is None else self._server.events()
        return failed + self.client.events() + server

    def close(self) -> None:
        """See `BackgroundAgent`."""
        if self._server is not None:
            self._server.close()
        super().close()
