"""`Server`: uvicorn's server, which lets sessions end well before it closes their connections."""

import asyncio
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from interaction.serve.app import About, make_app
from interaction.serve.house import House


class _Http(H11Protocol):
    """HTTP of uvicorn, which would wait for a request for ever, and for any number of them."""

    start_s = 10.0  # s for a request, from the connection or from the answer before

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency and len(self.connections) > self.limit_concurrency:
            transport.abort()
        else:
            self.loop.call_later(self.start_s, self._look, None)

    def _look(self, before: object) -> None:
        """Closes the connection if nothing was asked since the last look."""
        if self not in self.connections:  # it is closed, or a WebSocket
            return
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is before:
            self.transport.abort()
        else:
            self.loop.call_later(self.start_s, self._look, self.cycle)


class Server(uvicorn.Server):
    """Serves a house; on SIGTERM and SIGINT clients are told, and their sessions are saved."""

    def __init__(
        self, house: House, about: About | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        """Makes a server; `run` starts it.

        Args:
          house: The engine and its sessions.
          about: What the page says about the model.
          host: Address to listen at.
          port: Port; 0 takes a free one.
        """
        self._house = house
        limits = house.limits
        super().__init__(
            uvicorn.Config(
                make_app(house, about),
                host=host,
                port=port,
                http=type("Http", (_Http,), {"start_s": limits.start_s}),
                log_config=None,  # the caller's
                log_level="warning",  # its lines tell ids of sessions
                access_log=False,
                ws_max_size=limits.message_bytes,
                limit_concurrency=limits.connections,
                timeout_graceful_shutdown=30,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends; uvicorn alone would close the connections first."""
        await self._house.drain()
        await super().shutdown(sockets)
