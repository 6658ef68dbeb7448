"""`House`: what all connections of a server share, and the sessions that clients may come back to.

With a folder, open sessions are saved every two seconds under `open`. Those that lost their client,
were stored, or were open when the process ended lie under `left`, where a client finds them again.
Records of sessions with `store` lie under `records`.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Generator
from typing import Any

from interaction.background.agent import BackgroundAgent
from interaction.engine.engine import Engine
from interaction.engine.session import SUFFIX, Session
from interaction.engine.snapshots import Snapshots
from interaction.serve.limits import Door, Limits
from interaction.serve.messages import ProtocolError
from interaction.serve.metrics import Metrics

_log = logging.getLogger(__name__)
_OPEN, _LEFT, _RECORDS, _CARD = "open", "left", "records", ".json"
_ENDING_TRIES = 40  # of 0.05 s, for a session that is ending
_SWEEP_S = 10.0  # s between two looks for files that are too old


@dataclasses.dataclass(frozen=True)
class Card:
    """What the server knows of a session beside its state."""

    id: str
    owner: str  # identity of the client, from `Door.check`
    config: dict[str, Any]  # what the client asked for
    until: float  # s since the epoch, when its file goes
    resumable: bool = True  # whether its protocol can go on with it


class House:
    """The engine of a server, its clients and their sessions."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        make_agent: Callable[[str], BackgroundAgent] | None = None,
        *,
        door: Door | None = None,
        limits: Limits | None = None,
        folder: str | os.PathLike | None = None,
        reads_instructions: bool = False,
    ) -> None:
        """Makes the house; `start` opens it.

        Args:
          engine: The engine; its rows are the most sessions.
          name: Name of the model.
          make_agent: Makes the background agent of a session from its instructions, for clients
            that leave delegations to the server; None: there is none.
          door: Who gets in; None: everybody on this machine.
          limits: Bounds of a client.
          folder: Folder for sessions that clients come back to; None: a lost session is lost.
          reads_instructions: Whether the agents read instructions.
        """
        self.engine, self.name, self.make_agent = engine, name, make_agent
        self.door, self.limits = door or Door(), limits or Limits()
        self.reads_instructions = reads_instructions
        self.metrics = Metrics(engine)
        audio = engine.model.config.audio
        self.turn_s = audio.turn_samples / audio.sample_rate
        self.folder = None if folder is None else pathlib.Path(folder)
        self.cards: dict[str, Card] = {}  # of open sessions
        self.draining = asyncio.Event()
        self._opening: collections.Counter[str] = collections.Counter()  # sessions, by owner
        self._taken: set[str] = set()  # sessions under `left` that are being restored
        self._connections: set[asyncio.Task] = set()
        self._snapshots: Snapshots | None = None
        self._sweeper: asyncio.Task | None = None

    async def start(self) -> None:
        """Starts the engine; what a killed process left open can be gone on with."""
        await asyncio.to_thread(self.engine.start)
        if self.folder is not None:
            for place in (_OPEN, _LEFT, _RECORDS):
                (self.folder / place).mkdir(parents=True, exist_ok=True)
            for path in sorted((self.folder / _OPEN).glob(f"*{_CARD}")):
                card = _read_card(path)
                saved = path.with_suffix(SUFFIX)
                if card is None:
                    text = "a card of a session is damaged or of another version: %s"
                    _log.warning(text, path.name[:16])
                    continue
                if saved.exists() and card.resumable:
                    saved.replace(self.folder / _LEFT / saved.name)
                    kept_s = self.limits.kept_s
                    if card.config.get("store"):
                        kept_s = self.limits.stored_s
                    self._write(_LEFT, dataclasses.replace(card, until=time.time() + kept_s))
                path.unlink()
                saved.unlink(missing_ok=True)
            self._tidy()
            self._snapshots = Snapshots(self.engine, self.folder / _OPEN)
            self._sweeper = asyncio.create_task(self._sweep())

    async def drain(self) -> None:
        """Tells all clients that the server ends; saves their sessions and ends them."""
        self.draining.set()
        if self._connections:
            await asyncio.wait(self._connections, timeout=30.0)

    async def stop(self) -> None:
        """Ends what is left, and the engine."""
        await self.drain()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._snapshots is not None:
            await asyncio.to_thread(self._snapshots.close)
            self._tidy()
        await asyncio.to_thread(self.engine.stop)

    def enter(self, task: asyncio.Task) -> None:
        """Remembers a connection until its task has ended."""
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    # Sessions.

    @contextlib.contextmanager
    def room(self, owner: str) -> Generator[None]:
        """Holds a place for a session that a client opens; `admit` takes it.

        Raises:
          ProtocolError: Names the limit, or says that the server ends.
        """
        if self.draining.is_set():
            raise ProtocolError("session: the server restarts; try again soon", "server_full")
        most = self.limits.sessions_a_client
        mine = sum(card.owner == owner for card in self.cards.values())
        if mine + self._opening[owner] >= most:
            raise ProtocolError(
                f"session: got one more than the {most} that a client may have; close one",
                "session_limit_reached",
            )
        self._opening[owner] += 1
        try:
            yield
        finally:
            self._opening[owner] -= 1

    async def admit(self, session: Session, card: Card) -> None:
        """Takes a session that was just opened into the house.

        Raises:
          ProtocolError: Its card cannot be written; the session is closed.
        """
        try:
            await asyncio.to_thread(self._write, _OPEN, card)
        except Exception as error:
            await asyncio.to_thread(self.engine.close, session, "its card cannot be written")
            raise ProtocolError(f"session: {error}", "session_failed") from error
        self.cards[card.id] = card
        session.name = card.id

    async def dismiss(self, session: Session, card: Card, reason: str, kept_s: float) -> None:
        """Closes a session; with a time in s, it can be gone on with for so long."""
        path = None
        if self.folder is not None and kept_s and not session.closed:
            path = self.folder / _LEFT / f"{card.id}{SUFFIX}"
        try:
            await asyncio.to_thread(self.engine.close, session, reason, path)
            if path is not None:
                kept = dataclasses.replace(card, until=time.time() + kept_s)
                await asyncio.to_thread(self._write, _LEFT, kept)
                await asyncio.to_thread(self._make_room, card.owner)
        except (OSError, RuntimeError, ValueError) as error:
            _log.warning("a session could not be kept: %s", error)
        finally:
            self.cards.pop(card.id, None)
            if self.folder is not None:
                (self.folder / _OPEN / f"{card.id}{_CARD}").unlink(missing_ok=True)

    async def resume(
        self, name: str, owner: str, make: Callable[[dict[str, Any]], BackgroundAgent | None]
    ) -> tuple[Session, Card]:
        """Opens a copy of an open session, or a session that was left.

        Args:
          name: Id of the session.
          owner: Identity of the client.
          make: Makes the agent from the configuration of the session.

        Returns:
          The new session, and the card of the old one.

        Raises:
          ProtocolError: There is no such session of this client.
        """
        old = await self._settled(name)
        card, path = self.cards.get(name), self._left(name)
        if card is None and path is not None:
            card = _read_card(path.with_suffix(_CARD))
        gone = old is None and (path is None or name in self._taken)
        # A foreign one is as unknown as none.
        if card is None or gone or card.owner != owner or not card.resumable:
            raise ProtocolError(
                f"session: got {name[:80]!r}, wanted the id of an open or kept session",
                "session_not_found",
            )
        agent = make(card.config)
        if old is not None:
            try:
                return await asyncio.to_thread(self.engine.fork, old, agent), card
            except ValueError:
                if not old.closed:
                    raise
            return await self.resume(name, owner, make)  # it has just ended
        once = path is not None and not card.config.get("store")
        self._taken |= {name} if once else set()
        try:
            session = await asyncio.to_thread(self.engine.restore, str(path), agent)
            if path is not None and once:
                path.unlink(missing_ok=True)
                path.with_suffix(_CARD).unlink(missing_ok=True)
        finally:
            self._taken.discard(name)
        return session, card

    async def _settled(self, name: str) -> Session | None:
        """The session of this name, None if none is open; waits for one that is ending."""
        for _ in range(_ENDING_TRIES):
            for session in self.engine.sessions:
                if session.name == name and not session.closed:
                    return session
            if name not in self.cards:  # what it left is on the disk
                break
            await asyncio.sleep(0.05)
        return None

    def record_path(self, name: str) -> pathlib.Path | None:
        """Where the record of a session with `store` goes; None without a folder."""
        return None if self.folder is None else self.folder / _RECORDS / f"{name}.session"

    def find_record(self, name: str, owner: str) -> pathlib.Path | None:
        """The record of a stored session that has ended; None if this client has none."""
        left, path = self._left(name), self.record_path(name)
        if left is None or path is None or not path.exists():
            return None
        card = _read_card(left.with_suffix(_CARD))
        return path if card is not None and card.owner == owner else None

    def _left(self, name: str) -> pathlib.Path | None:
        """The file of a session that was left; None if there is none."""
        if self.folder is None or not name.replace("_", "").isalnum():
            return None
        path = self.folder / _LEFT / f"{name}{SUFFIX}"
        return path if path.exists() and path.with_suffix(_CARD).exists() else None

    def _write(self, place: str, card: Card) -> None:
        if self.folder is not None:
            path = self.folder / place / f"{card.id}{_CARD}"
            part = path.with_suffix(".part")
            part.write_text(json.dumps(vars(card)))
            part.replace(path)

    def _remove(self, path: pathlib.Path) -> None:
        """Removes a session that was left, by its card."""
        path.with_suffix(SUFFIX).unlink(missing_ok=True)
        (path.parent.parent / _RECORDS / f"{path.stem}.session").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _make_room(self, owner: str) -> None:
        """Removes the oldest sessions that a client has left, beyond its limit."""
        if self.folder is not None:
            left = [(path, _read_card(path)) for path in (self.folder / _LEFT).glob(f"*{_CARD}")]
            mine = [(card.until, path) for path, card in left if card and card.owner == owner]
            for _, path in sorted(mine)[: -self.limits.kept_a_client]:
                self._remove(path)

    def _tidy(self) -> None:
        """Removes what belongs to no session: nobody can go on with it."""
        for path in (self.folder / _OPEN).iterdir() if self.folder is not None else ():
            if path.suffix != _CARD and not path.with_suffix(_CARD).exists():
                path.unlink(missing_ok=True)

    async def _sweep(self) -> None:
        while self.folder is not None:
            now = time.time()
            for path in (self.folder / _LEFT).glob(f"*{_CARD}"):
                card = _read_card(path)
                until = card.until if card else path.stat().st_mtime + self.limits.stored_s
                if until < now:
                    self._remove(path)
            for path in (self.folder / _RECORDS).iterdir():
                known = path.stem in self.cards or self._left(path.stem) is not None
                if not known and path.stat().st_mtime + self.limits.kept_s < now:
                    path.unlink(missing_ok=True)
            await asyncio.sleep(_SWEEP_S)


def _read_card(path: pathlib.Path) -> Card | None:
    """The card in a file; None if another version of the server wrote it, or it is damaged."""
    try:
        return Card(**json.loads(path.read_text()))
    except (OSError, TypeError, ValueError):
        return None
