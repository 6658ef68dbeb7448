"""`Server`: uvicorn's server, which lets sessions end well before it closes their connections."""

import socket

import uvicorn

from interaction.serve.app import About, make_app
from interaction.serve.house import House


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
        super().__init__(
            uvicorn.Config(
                make_app(house, about),
                host=host,
                port=port,
                log_config=None,  # the caller's
                ws_max_size=house.limits.message_bytes,
                limit_concurrency=house.limits.connections,
                timeout_graceful_shutdown=30,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends; uvicorn alone would close the connections first."""
        await self._house.drain()
        await super().shutdown(sockets)
