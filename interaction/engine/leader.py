"""A model that lies over several processes, one for each host, led by one of them.

Process 0 of `jax.distributed` runs the `Engine`, on a `Leader`; the others run `follower.follow`.
Each call of the model is sent to all processes, which make it on their own devices: the same
programs in the same order, as a mesh over processes needs. A process takes the rows of the sessions
on its devices, and sends their replies back.

If a process is gone, or does not answer in time, no session can go on: the devices of the others
may wait for it for ever. The leader then raises `HostLostError`, so that the engine ends its
sessions with this reason, and the others leave `follow` with the same error. All processes must be
started again; sessions go on from their files, see `snapshots`.
"""

import collections
import itertools
import queue
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Self

import numpy as np

from interaction.engine.follower import Worker
from interaction.engine.live_model import InteractionModel
from interaction.engine.process_links import (
    END,
    HostLostError,
    accept_all,
    check_role,
    decode,
    encode,
)
from interaction.types import Chunk, Reply

LOST_AFTER_S = 10.0  # s until a process that does not answer a step is lost
_GOODBYE_S = 1.0  # s to send the last message
SLOW_S = 120.0  # s for other calls, whose first one may compile; `compile` takes any time


class Held:
    """A value of which every process has its part, such as a state."""

    def __init__(self, number: int, sessions: int) -> None:
        """Names it.

        Args:
          number: Its number in every process.
          sessions: Number of sessions of all processes, if it is a state.
        """
        self.number, self.sessions = number, sessions


class _Other:
    """Another process; what it answers, or None at its end, is put into a queue."""

    def __init__(
        self, process: int, connection: Connection, answers: queue.SimpleQueue[tuple[int, Any]]
    ) -> None:
        self.messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process, self._connection, self._answers = process, connection, answers
        # A process that does not read makes a sender wait, so it is a thread of its own.
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def _send(self) -> None:
        try:
            while (message := self.messages.get()) is not None:
                self._connection.send_bytes(message)
        except OSError:
            self._answers.put((self._process, None))

    def _listen(self) -> None:
        try:
            while True:
                self._answers.put((self._process, decode(self._connection.recv_bytes())))
        except (EOFError, OSError):
            self._answers.put((self._process, None))

    def close(self, last: bytes) -> None:
        """Sends a last message, if it can be sent soon."""
        self.messages.put(last)
        self.messages.put(None)
        self._sender.join(_GOODBYE_S)
        self._connection.close()


class Leader:
    """The model of all processes: a `rows.BatchModel` for the `Engine` of process 0.

    Sessions and rows are those of all processes.
    """

    def __init__(
        self,
        model: InteractionModel,
        address: str | None = None,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        """Waits until all other processes call `follow`.

        Args:
          model: The model, on a mesh with devices of all processes.
          address: Address or name of this host that the others reach; None: of its own name.
          lost_after_s: Time in s after which a process that does not answer is lost.

        Raises:
          ValueError: The mesh leaves out a process, or this is not process 0.
          HostLostError: Some process did not come.
        """
        check_role(model, leads=True)
        self.config, self.tokenizer = model.config, model.tokenizer
        self._model, self._lost_after_s = model, lost_after_s
        self._lost: str = ""  # why no call can be made
        self._numbers = itertools.count()
        self._dropped: collections.deque[int] = collections.deque()
        self._rows: dict[int, list[np.ndarray]] = {}  # by number of sessions: each process's
        self._answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of all calls, whose order is the same in each process
        self._own = Worker(model, lambda answer: self._answers.put((0, answer)))
        self._others = [
            _Other(process, connection, self._answers)
            for process, connection in enumerate(accept_all(address or socket.gethostname()), 1)
        ]

    def close(self) -> None:
        """Lets the other processes leave `follow`."""
        with self._lock:
            for other in self._others:
                other.close(encode({"name": END, "reason": self._lost}))
            self._others = []
            self._own.calls.put(None)
            self._lost = self._lost or "the leader is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        name: str,
        held: dict[str, Held] | None = None,
        given: dict[str, Any] | None = None,
        *,
        rows: Sequence[np.ndarray] | None = None,
        limit_s: float | None = SLOW_S,
    ) -> tuple[int, list[Any]]:
        """Calls a method of the model in all processes.

        Args:
          name: Name of the method.
          held: Its arguments of which every process has its part.
          given: Its other arguments.
          rows: Rows of `given` for each process; None: all get the same.
          limit_s: Time in s after which a process that does not answer is lost.

        Returns:
          The number of the value that it makes, and what each process answers.
        """
        held, given = held or {}, given or {}
        with self._lock:
            if self._lost:
                raise HostLostError(self._lost)
            number = next(self._numbers)
            call = {
                "name": name,
                "number": number,
                "held": {key: one.number for key, one in held.items()},
                "dropped": [self._dropped.popleft() for _ in range(len(self._dropped))],
            }
            parts = [given] * (1 + len(self._others))
            if rows is not None:
                parts = [{key: leaf[own] for key, leaf in given.items()} for own in rows]
            self._own.calls.put(call | {"given": parts[0]})
            for other, part in zip(self._others, parts[1:], strict=True):
                other.messages.put(encode(call | {"given": part}))
            try:
                answers = self._wait(len(parts), limit_s)
            except BaseException as error:  # what is still under way has no place in a later call
                self._lost = self._lost or f"a call was interrupted: {error!r}"
                raise
            failed = [process for process, answer in enumerate(answers) if answer["error"]]
            if failed and len(failed) < len(answers):
                self._lose(f"process {failed[0]} failed alone: {answers[failed[0]]['error']}")
        if failed:
            raise (ValueError if answers[0]["refused"] else RuntimeError)(answers[0]["error"])
        return number, [answer["result"] for answer in answers]

    def _wait(self, processes: int, limit_s: float | None) -> list[Any]:
        found: dict[int, Any] = {}
        end = None if limit_s is None else time.monotonic() + limit_s
        while len(found) < processes:
            try:
                left = None if end is None else max(0.0, end - time.monotonic())
                process, answer = self._answers.get(timeout=left)
            except queue.Empty:
                silent = sorted(set(range(processes)) - set(found))
                self._lose(f"processes {silent} did not answer within {limit_s:g} s")
            if answer is None:
                self._lose(f"process {process} is gone")
            found[process] = answer
        return [found[process] for process in range(processes)]

    def _lose(self, reason: str) -> NoReturn:
        self._lost = f"{reason}; start all processes again and restore the sessions"
        raise HostLostError(self._lost)

    def _hold(
        self,
        name: str,
        held: dict[str, Held] | None = None,
        given: dict[str, Any] | None = None,
        sessions: int = 1,
    ) -> Held:
        return self._keep(self._call(name, held, given)[0], sessions)

    def _keep(self, number: int, sessions: int) -> Held:
        one = Held(number, sessions)
        weakref.finalize(one, self._dropped.append, number)
        return one

    # The methods of a `BatchModel`.

    def compile(self, sessions: int, *, frames: bool = False) -> None:
        """Compiles every program of a batch in each process, see `InteractionModel.compile`."""
        given = {"sessions": sessions, "frames": frames}
        self._call("compile", given=given, limit_s=None)

    def fingerprint(self) -> str:
        """Identity of the model."""
        return self._call("fingerprint", limit_s=None)[1][0]

    def init_state(self, sessions: int, seed: int = 0) -> Held:
        """A fresh state of `sessions` sessions, of which each process has its part.

        Raises:
          ValueError: The mesh does not divide the number of sessions.
        """
        given = {"sessions": sessions, "seed": seed}
        number, self._rows[sessions] = self._call("init_state", given=given)
        return self._keep(number, sessions)

    def init_row(self, seed: int) -> Held:
        """A fresh session in the form of `take_row`."""
        return self._hold("init_row", given={"seed": seed})

    def take_row(self, state: Held, row: int) -> Held:
        """A copy of one session of a state; every process has all of it."""
        return self._hold("take_row", {"state": state}, {"row": row})

    def put_row(self, state: Held, row: int, one: Held) -> Held:
        """The state with a session in a row; the state is donated."""
        return self._hold("put_row", {"state": state, "one": one}, {"row": row}, state.sessions)

    def pack_row(self, one: Held) -> dict[str, Any]:
        """A session from `take_row` in a form for files; for any thread."""
        return self._model.pack_row(self._own.held[one.number])

    def unpack_row(self, packed: Any, where: object) -> Held:  # noqa: ANN401
        """The session that `pack_row` packed, for `put_row`.

        Raises:
          ValueError: It belongs to another model, is damaged, or is not finite.
        """
        return self._hold("unpack_row", given={"packed": packed, "where": str(where)})

    def before_step(self, state: Held) -> Held:
        """What the next step changes, see `session_rows.before_step`."""
        return self._hold("before_step", {"state": state})

    def take_back(self, state: Held, undo: Held, row: int) -> Held:
        """The state with one session before a step; the state is donated."""
        return self._hold("take_back", {"state": state, "undo": undo}, {"row": row}, state.sessions)

    def step(self, state: Held, chunk: Chunk) -> tuple[Held, Reply]:
        """Takes one micro-turn of every session.

        Args:
          state: State of the sessions; donated.
          chunk: Inputs of all sessions, NumPy arrays.

        Returns:
          The new state, and the reply to all sessions, NumPy arrays.

        Raises:
          HostLostError: A process is gone; no call can be made afterwards.
        """
        given = {name: leaf for name, leaf in chunk._asdict().items() if leaf is not None}
        rows = self._rows[state.sessions]
        number, parts = self._call(
            "step", {"state": state}, given, rows=rows, limit_s=self._lost_after_s
        )
        reply: dict[str, Any] = {
            name: np.empty((state.sessions, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in parts[0].items()
        }
        for own, part in zip(rows, parts, strict=True):
            for name, leaf in part.items():
                reply[name][own] = leaf
        return self._keep(number, state.sessions), Reply(**reply)
