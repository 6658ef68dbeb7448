"""`Engine`: many conversations on one model; one jitted step for all of them every 200 ms.

Sessions join and leave between two steps, without recompilation. What must happen there is queued
by other threads and done by the engine's own thread.
"""

import asyncio
import functools
import logging
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import numpy as np

from interaction import logs
from interaction.background import delegations
from interaction.background.agent import BackgroundAgent
from interaction.engine import saved_session, session_file, session_record
from interaction.engine.chunk_checks import check_trained_on_frames
from interaction.engine.rows import BatchModel, Rows, check_seed
from interaction.engine.session import FINISH_S, SUFFIX, Session

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
MAGIC = b"convers1"
_FAILED = "the engine failed, make another one: {!r}"
AGAIN_S = 5.0  # a loop that is later than this restarts its clock


class Engine:
    """The sessions of one model.

    Without `start`, `tick` takes each micro-turn. All methods may be called from any thread, and
    wait for the end of the current step.
    """

    def __init__(
        self,
        model: BatchModel,
        rows: int = 1,
        *,
        frames: bool = False,
        rewind: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Compiles all variants of the step.

        Args:
          model: A loaded model.
          rows: Most sessions at once.
          frames: Whether sessions may have video frames.
          rewind: Most micro-turns that `rewind` takes back.
          clock: Function that returns the time in s from any origin.
          sleep: Function that waits for a time in s.

        Raises:
          ValueError: The model's mesh spans processes, it was not trained on frames, or `rows` or
            `rewind` is too small.
        """
        session_record.check_alone(model)
        for name, number, least in (("rows", rows, 1), ("rewind", rewind, 0)):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name}: got {number!r}, wanted an integer of at least {least}")
        if frames:
            check_trained_on_frames(model.config)
        self.model, self.frames = model, frames
        self._rows = Rows(model, rows, frames=frames, rewind=rewind)
        model.tokenizer.encode(delegations.SORRY)
        self._sessions: dict[int, Session] = {}  # by row
        self.ticks = self.missed = 0  # micro-turns, and those whose replies were late
        self.clock, self.sleep = clock, sleep
        self.due = 0.0  # by the clock, when the next micro-turn of a started engine begins
        self._identity: str | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self.error: BaseException | None = None  # why no step can be taken any more
        self._finishing: list[threading.Thread] = []  # of sessions that ended by themselves
        self._gate = threading.Lock()  # of the queue of what waits
        self._busy = threading.RLock()  # of the rows
        self._waiting: queue.SimpleQueue[tuple[Future, Callable[[], Any]]] = queue.SimpleQueue()

    @property
    def sessions(self) -> list[Session]:
        """The open sessions."""
        return list(self._sessions.values())

    @property
    def free(self) -> int:
        """Number of sessions that can still be opened."""
        return self._rows.free

    # Sessions come and go.

    def open(
        self,
        agent: BackgroundAgent | None = None,
        seed: int = 0,
        record: str | os.PathLike | None = None,
        *,
        limit_s: float = delegations.LIMIT_S,
        calls_limit_s: float = delegations.CALLS_LIMIT_S,
    ) -> Session:
        """Opens a fresh session, which takes part from the next micro-turn on.

        Args:
          agent: Agent that answers its delegations; it is closed with the session. None: every
            delegation fails, see `delegations.SORRY`.
          seed: Seed of the model's sampling.
          record: File to write the record to, see `session_record`; it must not exist.
          limit_s: Time limit in s of a delegation without its tool calls, after which it fails.
          calls_limit_s: Time limit in s of a delegation's tool calls, timers included.

        Raises:
          FullError: All rows are taken.
          ValueError: The seed does not fit in int32, or the record cannot be created.
        """
        check_seed(seed)
        session = self._make(agent, seed, limit_s, calls_limit_s)
        take = functools.partial(self._rows.allocate, seed)
        return self._join(session, take, None, record)

    def _make(
        self, agent: BackgroundAgent | None, seed: int, limit_s: float, calls_limit_s: float
    ) -> Session:
        limits = {"limit_s": limit_s, "calls_limit_s": calls_limit_s, "clock": self.clock}
        return Session(self.model, agent, seed, frames=self.frames, **limits)

    def _join(
        self,
        session: Session,
        take: Callable[[], int],
        begin: Callable[[], object] | None = None,
        record: str | os.PathLike | None = None,
        turns: int = 0,
        packed: Any = None,  # noqa: ANN401
    ) -> Session:
        """Lets a session in between two steps: takes a row, and begins."""

        def join() -> None:
            row = take()
            try:
                if begin is not None:
                    begin()
            except BaseException:
                self._rows.release(row)
                raise
            self._sessions[row] = session

        try:
            if record is not None:  # on the caller's thread
                known = self.fingerprint(), session.seed, turns, packed
                header = session_record.new_header(self.model, *known, self._rows.count)
                session.record(record, header)
            self._do(join)
        except BaseException:
            session.undo()
            raise
        return session

    def close(
        self, session: Session, reason: str = "closed", path: str | os.PathLike | None = None
    ) -> bool:
        """Ends a session: closes its agent and its record, and frees its row.

        Args:
          session: The session.
          reason: Why it ends, in words.
          path: File to save it to at its end; None for none.

        Returns:
          Whether the record is complete; True if there is none.

        Raises:
          OSError: The file cannot be written; call it again with another path.
          ValueError: A `path` for a session that had ended by itself.
        """

        def leave() -> None:
            row = self._row(session)
            if path is not None:
                session.last_state = self._rows.snapshot(row)
            del self._sessions[row]
            self._rows.release(row)

        if not session.closed:
            self._do(leave)
        complete = session.finish(reason)
        if path is not None:
            if session.last_state is None:
                raise ValueError(
                    f"path: got {path} for a session that had ended ({session.closed}), wanted an "
                    "open one; save it before it ends"
                )
            self._write(path, session.saved(), session.last_state)
            session.last_state = None
        return complete

    def _row(self, session: Session) -> int:
        for row, one in self._sessions.items():
            if one is session:
                return row
        raise ValueError("session: got a closed one; restore it from a saved file")

    def type(self, session: Session, text: str) -> None:
        """Takes text that the model reads in the session's next micro-turns.

        Raises:
          ValueError: The text is too long, too much text waits, or the session is closed.
        """
        self._do(lambda: (self._row(session), session.type(text)))

    def snapshot(self, session: Session) -> tuple[dict[str, Any], Any]:
        """A session as it is between two steps: the fields of its file but the state; the state.

        The state is a copy on the device, for the model's `pack_row`.
        """
        return self._do(lambda: (session.saved(), self._rows.snapshot(self._row(session))))

    def save(self, session: Session, path: str | os.PathLike) -> None:
        """Writes a session to a file for `restore`; waits for the disk, which the step does not.

        Before another process restores it, close it with this `path`: then each tool is called at
        most once.

        Args:
          session: The session.
          path: File to write, which is replaced if it exists.
        """
        self._write(path, *self.snapshot(session))

    def _write(self, path: str | os.PathLike, fields: dict[str, Any], state: Any) -> None:  # noqa: ANN401
        fields |= {
            "version": session_file.VERSION,
            "model": self.fingerprint(),
            "frames": self.frames,
            "state": self.model.pack_row(state),
            "kept": saved_session.pack_turns(fields["kept"]),
        }
        session_file.write_file(path, MAGIC, fields)

    def restore(
        self,
        path: str | os.PathLike,
        agent: BackgroundAgent | None = None,
        record: str | os.PathLike | None = None,
        *,
        limit_s: float = delegations.LIMIT_S,
        calls_limit_s: float = delegations.CALLS_LIMIT_S,
    ) -> Session:
        """Opens a saved session, of any row and batch; its next outputs are the same.

        They are the same bit for bit in a batch of the same size. The agent observes the last
        `session.KEEP` micro-turns again. A running delegation is asked again, unless a tool was
        called for it or a part of its result reached the model: then it fails.

        Args:
          path: File that `save` wrote.
          agent: See `open`.
          record: File for the record of the micro-turns from here on; it must not exist.
          limit_s: See `open`; time before `save` counts.
          calls_limit_s: See `open`; time before `save` counts.

        Raises:
          FullError: All rows are taken.
          ValueError: The file is missing, damaged, or of another model or version.
        """
        fields, place = session_file.read_file(path, MAGIC), pathlib.Path(path)
        session_record.check_identity(place, fields.take("model", str), self.fingerprint())
        if fields.take("frames", bool) and not self.frames:
            raise ValueError(
                f"{place}: got a session with video, wanted one without; make the engine with "
                "frames=True"
            )
        seed = fields.take("seed", int, -(1 << 31), (1 << 31) - 1)
        state = self.model.unpack_row(fields["state"], place)
        known = {
            "turns": fields.take("turns", int, 0),
            "kept": saved_session.kept_turns(fields, self.model.config),
            "talk": saved_session.saved_talk(fields),
            "level": saved_session.saved_level(fields),
            "told": saved_session.saved_events(fields, self.model.config.vocab),
        }
        session = self._make(agent, seed, limit_s, calls_limit_s)
        name = place.name.removesuffix(SUFFIX)
        if name != place.name and all(one.name != name for one in self.sessions):
            session.name = name  # so that its file is replaced
        take, begin = functools.partial(self._rows.restore, state), lambda: session.resume(known)
        return self._join(session, take, begin, record, known["turns"], fields["state"])

    def fork(self, session: Session, agent: BackgroundAgent | None = None) -> Session:
        """Opens a copy of a session, which goes on by itself from here.

        Args:
          session: The session.
          agent: Agent of the copy, see `restore`.

        Raises:
          FullError: All rows are taken.
        """
        copy = self._make(agent, session.seed, *session.limits)
        return self._join(
            copy,
            lambda: self._rows.fork(self._row(session)),
            lambda: copy.resume(session.saved()),
        )

    def rewind(self, session: Session, micro_turns: int) -> None:
        """Takes back the newest micro-turns of the model; delegations and the record go on.

        Raises:
          ValueError: The engine keeps fewer micro-turns, see its `rewind`.
        """
        self._do(lambda: self._rows.rewind(self._row(session), micro_turns))

    def fingerprint(self) -> str:
        """The fingerprint of the model."""
        if self._identity is None:
            self._identity = self.model.fingerprint()
        return self._identity

    def _do(self, work: Callable[[], _Result]) -> _Result:
        """Runs a function between two steps."""
        if self.error is not None:
            raise RuntimeError(_FAILED.format(self.error))
        with self._gate:
            direct = self._thread in (None, threading.current_thread())
            done: Future = Future()
            if not direct:
                self._waiting.put((done, work))
        if not direct:
            return done.result()
        with self._busy:
            return work()

    # Micro-turns.

    def tick(self) -> None:
        """Takes one micro-turn of all open sessions, whose `reply` it sets."""
        if self.error is not None:
            raise RuntimeError(_FAILED.format(self.error))
        with self._busy:
            try:
                self._tick()
            except BaseException as error:  # of the device: no session can go on
                self.error = error
                for session in self.sessions:
                    self._end(session, f"the engine failed: {error!r}")
                raise

    def _tick(self) -> None:
        self.ticks += 1
        taking, given = dict(self._sessions), {}
        for row, session in taking.items():
            try:
                given[row] = session.inputs()
            except Exception as error:
                self._end_broken(session, error)
        # A subscriber may have closed sessions in the meantime, and opened others.
        inputs = {row: one for row, one in given.items() if self._sessions.get(row) is taking[row]}
        began = time.perf_counter()
        replies = self._rows.step(inputs) if inputs else {}
        step_s = time.perf_counter() - began
        for row, reply in replies.items():
            session = taking[row]
            if self._sessions.get(row) is not session:
                continue
            try:
                session.observe(inputs[row], reply, step_s)
            except Exception as error:
                self._end_broken(session, error)
                continue
            if session.ended and not session.closed and self._thread is not None:
                self._end(session, "the source ended")

    def _end_broken(self, session: Session, error: Exception) -> None:
        """Ends one session whose bookkeeping failed, so that the others go on."""
        if session.closed:
            return
        logs.warn(_log, "a session ends: %s", repr(error), exc_info=True)
        self._end(session, f"{type(error).__name__}: {error}")

    def _end(self, session: Session, reason: str) -> None:
        """Ends a session between two steps, which do not wait for its agent and its record."""
        row = self._row(session)
        del self._sessions[row]
        self._rows.release(row)
        if self._thread is None:
            session.finish(reason)
        else:
            self._finishing = [one for one in self._finishing if one.is_alive()]
            self._finishing.append(threading.Thread(target=session.finish, args=(reason,)))
            self._finishing[-1].daemon = True  # an agent may never end
            self._finishing[-1].start()

    def start(self) -> Self:
        """Starts a thread that ticks every 200 ms until `stop`.

        A `with` statement starts and stops it, and raises a RuntimeError if it failed meanwhile.
        """
        if self._thread is None:
            self.fingerprint()  # takes long once, so it does not run beside the first steps
            self._ending.clear()
            self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread after its current step, and closes all sessions."""
        thread = self._thread
        if thread is threading.current_thread():
            raise RuntimeError("stop: got a call of a subscriber, wanted one of another thread")
        if thread is not None:
            self._ending.set()
            thread.join()
        for session in self.sessions:
            self.close(session, "the engine stopped")
        for one in self._finishing:
            one.join(FINISH_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if self.error is not None and kind is None:
            raise RuntimeError(_FAILED.format(self.error)) from self.error

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self.__exit__, *error)

    def _loop(self) -> None:
        config = self.model.config.audio
        length = config.turn_samples / config.sample_rate
        self.due = self.clock() + length
        while not self._ending.is_set():
            self._between()
            try:
                self.tick()
            except BaseException:
                _log.exception("the engine ends")
                break
            early = self.due - self.clock()
            if early > 0:
                self.sleep(early)
            elif early > -AGAIN_S:
                self.miss(-early)
            else:  # the clock begins again
                self.miss(-early, 1 + int(-early / length))
                self.due = self.clock()
            self.due += length
        with self._gate:  # afterwards nothing is queued
            self._thread = None
        self._between()

    def _between(self) -> None:
        """Does what waits for the end of a step."""
        while not self._waiting.empty():
            done, work = self._waiting.get()
            try:
                with self._busy:
                    result = work() if self.error is None else None
                if self.error is not None:
                    raise RuntimeError(_FAILED.format(self.error))
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(result)

    def miss(self, late_s: float, count: int = 1) -> None:
        """Counts micro-turns, the last of which was `late_s` seconds late.

        Args:
          late_s: Time, s.
          count: Their number; more than 1 if the clock begins again after a stall.
        """
        self.missed += count
        for session in self.sessions:
            session.miss(late_s, count)
        stats = [session.stats for session in self.sessions]
        logs.warn(
            _log,
            "a micro-turn was %.0f ms late (step %.0f ms, the rest %.1f ms of %d sessions)",
            1_000 * late_s,
            1_000 * max((one.step_s for one in stats), default=0.0),
            1_000 * float(np.sum([one.driver_s for one in stats])),
            len(stats),
        )
