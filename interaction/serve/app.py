"""The web application: the protocols' addresses, the page, and what an operator reads."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from interaction.serve.house import House
from interaction.serve.limits import KEY_PROTOCOL, RefusedError
from interaction.serve.live.live_connection import LiveConnection
from interaction.serve.realtime.realtime_connection import RealtimeConnection

PAGE = pathlib.Path(__file__).parent / "page"


class About(NamedTuple):
    """What the page says about the model."""

    about: str = ""
    examples: Sequence[str] = ()  # what a user may say


def make_app(house: House, about: About | None = None) -> Starlette:
    """The application of a server.

    Args:
      house: The engine and its sessions; started and stopped with the application.
      about: What the page says about the model.
    """
    config = house.engine.model.config
    told = (about or About())._asdict() | {
        "model": house.name,
        "delegates": house.make_agent is not None,
        "reads_text": config.trained_on_text,
        "frame_size": config.frame_size if house.engine.frames else 0,  # pixels; 0: it is blind
        "token": not house.door.open,
    }

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await house.start()
        try:
            yield
        finally:
            await house.stop()

    return Starlette(
        routes=[
            *_protocols(house),
            *_files(house, told),
            *_for_operators(house),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        lifespan=lifespan,
    )


def _protocols(house: House) -> list[BaseRoute]:
    async def enter(socket: WebSocket) -> str | None:
        """Lets a client in and returns who it is; None if it is refused."""
        try:
            owner = house.door.check(dict(socket.headers))
        except RefusedError as error:
            house.metrics.refused(str(error.status))
            await socket.send_denial_response(_error(error))
            return None
        await socket.accept(subprotocol=_subprotocol(socket))
        task = asyncio.current_task()
        if task is not None:
            house.enter(task)
        return owner

    async def live(socket: WebSocket) -> None:
        if (owner := await enter(socket)) is not None:
            fork = socket.path_params.get("session", "")
            await LiveConnection(house, socket, owner, fork).run()

    async def realtime(socket: WebSocket) -> None:
        if (owner := await enter(socket)) is not None:
            model = socket.query_params.get("model", "")
            await RealtimeConnection(house, socket, owner, model).run()

    return [
        WebSocketRoute("/v1/live/sessions", live),
        WebSocketRoute("/v1/live/sessions/{session}/fork", live),
        WebSocketRoute("/v1/realtime", realtime),
    ]


def _files(house: House, told: dict[str, Any]) -> list[BaseRoute]:
    async def describe(_: Request) -> Response:
        return JSONResponse(told)

    async def content(request: Request) -> Response:
        try:
            owner = house.door.check(dict(request.headers))
            path = house.find_record(request.path_params["session"], owner)
            if path is None:
                raise RefusedError(404, "session: there is no record; ask for `store` at its start")
        except RefusedError as error:
            return _error(error)
        return FileResponse(path, media_type="application/octet-stream")

    return [
        Route("/about.json", describe),
        Route("/v1/live/sessions/{session}/content", content),
    ]


def _for_operators(house: House) -> list[BaseRoute]:
    async def health(_: Request) -> Response:
        engine = house.engine
        fine = engine.error is None and not house.draining.is_set()
        fields = {"status": "ok" if fine else "failing", "sessions": len(engine.sessions)}
        return JSONResponse(fields | {"free": engine.free}, 200 if fine else 503)

    async def metrics(request: Request) -> Response:
        try:
            house.door.check(dict(request.headers))
        except RefusedError as error:
            return _error(error)
        return PlainTextResponse(house.metrics.text(), media_type="text/plain; version=0.0.4")

    return [Route("/healthz", health), Route("/metrics", metrics)]


def _subprotocol(socket: WebSocket) -> str | None:
    """The first protocol that a browser offers and that is no token."""
    offered = socket.scope.get("subprotocols", [])
    return next((name for name in offered if not name.startswith(KEY_PROTOCOL)), None)


def _error(error: RefusedError) -> Response:
    fields = {"type": "invalid_request_error", "code": str(error.status), "message": str(error)}
    return JSONResponse({"error": fields}, error.status)
