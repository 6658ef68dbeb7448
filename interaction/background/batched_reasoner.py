"""A background model that serves the delegations of many conversations in one batch.

The records and forks of all conversations are rows of one state. The calls of the agents' threads
wait in a queue, and one thread, the worker, runs those that wait together, up to eight at once.
"""

import collections
import dataclasses
import logging
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from interaction.background.agent import MicroTurn
from interaction.background.reasoner import ReasonerState
from interaction.background.reasoner_agent import (
    READ,
    NoFreeRowError,
    Reasoner,
    pack_tokens,
    pack_turns,
    silent_turn,
)
from interaction.background.reasoner_rows import make_row_functions
from interaction.compiled.traced_objects import keep_traced
from interaction.distributed.jax_settings import model_settings
from interaction.types import Special

_log = logging.getLogger(__name__)
SIZES = (1, 4, 8)  # rows of a call; fewer are padded. Each size is traced at the start
TOGETHER_S = 0.001  # s that a call waits for the threads that the call before it served


class _Rows:
    """The state of all rows, and which of them are free."""

    def __init__(self, count: int) -> None:
        self.state: ReasonerState | None = None  # made by the worker; only it reads this
        # A deque and no lock: rows are freed by the garbage collector, at any time.
        self.free = collections.deque(range(count))


class Row:
    """The state of a record or a fork; its row is free again when nobody refers to this."""

    def __init__(self, rows: _Rows, number: int) -> None:
        """Takes a row.

        Args:
          rows: The rows that it is one of.
          number: Its number, which is no longer in `rows.free`.
        """
        self.rows, self.number = rows, number
        self.give_back = weakref.finalize(self, rows.free.append, number)  # works once
        self.give_back.atexit = False


@dataclasses.dataclass(eq=False)
class _Call:
    """A call that waits."""

    kind: str  # name of one of `RowFunctions`
    row: Row
    given: Any  # arrays [1, ...]
    thread: int  # identity of the thread that waits for it
    answer: Future

    @property
    def alike(self) -> tuple:
        """Calls in which this is equal can run together."""
        return self.kind, *(leaf.shape for leaf in jax.tree.leaves(self.given))


class BatchedReasoner(Reasoner):
    """A `Reasoner` for the agents of many conversations, which share it; it has its own thread.

    Calls wait for each other, and those of agents that ask at the same time are one call of the
    model. A state is a `Row`, and there are `rows` of them: a conversation takes one, and each of
    its running delegations one more. The model's result for a row does not depend on the other rows
    of a call. It may differ in the last bits between calls of 1, 2, 4 and 8 rows.
    """

    def __init__(self, model: Reasoner, rows: int) -> None:
        """Starts the worker; functions are compiled by `warm_up` or when first called.

        Args:
          model: A loaded background model, whose parameters are shared.
          rows: Most records and forks at once.

        Raises:
          ValueError: There is no row.
        """
        if rows < 1:
            raise ValueError(
                f"rows: got {rows}, wanted at least 1; give one for each conversation and one for "
                "each delegation that runs at the same time"
            )
        self.config, self.tokenizer, self.trained = model.config, model.tokenizer, model.trained
        self._parts, self._packed = model._parts, model._packed
        self._functions = make_row_functions(*self._parts)
        self._count = rows
        self._sizes = [size for size in SIZES if size < 2 * rows]
        self._warm = threading.Lock()
        self._compiled: set[bool] = set()
        self._rows = _Rows(rows)
        self._change = threading.Condition()  # guards the fields up to the blank line
        self._waiting: list[_Call] = []
        self._closed = False

        self._served: set[int] = set()  # threads of the last call; only the worker uses it
        self._worker = threading.Thread(target=self._run_calls, name="background batch")
        self._worker.daemon = True
        self._worker.start()

    @property
    def free(self) -> int:
        """Number of free rows."""
        return len(self._rows.free)

    @model_settings()
    def warm_up(self, frames: bool = False) -> None:
        """Compiles all functions for every size of a call; with `frames` also those for video.

        Needs memory for a second state, and takes time: call it before the first conversation.
        """
        with self._warm:
            if frames in self._compiled:
                return
            turns = pack_turns(self.config, [silent_turn(self.config, frames)])
            one, several = pack_tokens([Special.HOLD]), pack_tokens([Special.HOLD] * READ)
            given = [("start", ()), ("prefill", turns), ("fork", np.zeros(1, np.int32))]
            given += [("read", one), ("read", several)]
            state = self._functions.init(self._count)
            for size in self._sizes:
                for kind, leaves in given:
                    state, _ = self._batch(kind, state, [], [leaves] * size)
            self._compiled.add(frames)
            keep_traced()

    def start(self) -> Row:
        """The state of a conversation before its first micro-turn.

        Raises:
          NoFreeRowError: All rows are taken.
          RuntimeError: The call failed, or this was closed; of every method.
        """
        row = self._take_row(self._rows)
        self._ask("start", row, ())
        return row

    def prefill(self, state: Row, turns: Sequence[MicroTurn]) -> Row:
        """Reads at most PREFILL_TURNS micro-turns; the state is changed and returned.

        Waits for the result; see `Reasoner.prefill`, but up to eight prefills run at once.
        """
        self._ask("prefill", state, pack_turns(self.config, turns))
        return state

    def fork(self, state: Row) -> Row:
        """A copy of the state.

        Raises:
          NoFreeRowError: All rows are taken.
        """
        row = self._take_row(state.rows)  # not another generation's, whose rows are other sessions
        self._ask("fork", row, np.array([state.number], np.int32))
        return row

    def read(self, state: Row, ids: Sequence[int]) -> tuple[Row, int]:
        """Reads at most READ tokens, changes the state, and returns the likeliest next token."""
        return state, int(self._ask("read", state, pack_tokens(ids)))

    def close(self) -> None:
        """Ends the worker after its current call; calls that wait, and later ones, fail."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._worker is not threading.current_thread():
            self._worker.join(1.0)

    def _take_row(self, rows: _Rows) -> Row:
        try:
            return Row(rows, rows.free.popleft())
        except IndexError:
            raise NoFreeRowError(
                f"rows: all {self._count} are taken, wanted a free one; wait until a conversation "
                "or a delegation ends, or make the BatchedReasoner with more rows"
            ) from None

    def _ask(self, kind: str, row: Row, given: Any) -> Any:  # noqa: ANN401
        """Adds a call and waits for its result."""
        call = _Call(kind, row, given, threading.get_ident(), Future())
        with self._change:
            if self._closed:
                raise RuntimeError("the batched reasoner is closed")
            self._waiting.append(call)
            self._change.notify_all()
        return call.answer.result()

    # The worker.

    def _run_calls(self) -> None:
        while calls := self._take():
            self._served = {call.thread for call in calls}
            answers = [call.answer for call in calls]
            outcomes = self._outcomes(calls)
            del calls  # so that rows are free as soon as the threads drop them
            for answer, outcome in zip(answers, outcomes, strict=True):
                if isinstance(outcome, RuntimeError):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)

    def _take(self) -> list[_Call]:
        """Waits for calls and takes those that run together with the oldest; none when closed."""

        def all_back() -> bool:
            return self._closed or self._served <= {call.thread for call in self._waiting}

        with self._change:
            self._change.wait_for(lambda: self._closed or self._waiting)
            # Those that were just served ask for their next token in a moment. Without this wait
            # two agents would take turns and never share a call.
            self._change.wait_for(all_back, TOGETHER_S)
            if self._closed:
                for call in self._waiting:
                    call.answer.set_exception(RuntimeError("the batched reasoner is closed"))
                self._waiting = []
                return []
            found: dict[Row, _Call] = {}  # one call of a row at a time
            for call in self._waiting:
                if call.alike == self._waiting[0].alike and len(found) < self._sizes[-1]:
                    found.setdefault(call.row, call)
            calls = list(found.values())
            self._waiting = [call for call in self._waiting if call not in calls]
        return calls

    @model_settings()  # they belong to a thread
    def _outcomes(self, calls: list[_Call]) -> list[Any]:
        """Runs calls that are alike; returns a result or a RuntimeError for each."""
        lost = "state: its row was lost in a call that failed; begin again with start()"
        rows = self._rows
        outcomes: dict[_Call, Any] = {call: RuntimeError(lost) for call in calls}
        valid = [call for call in calls if call.row.rows is rows and call.row.give_back.alive]
        if not valid:
            return list(outcomes.values())
        numbers, given = [call.row.number for call in valid], [call.given for call in valid]
        try:
            if rows.state is None:
                rows.state = self._functions.init(self._count)
            rows.state, results = self._batch(valid[0].kind, rows.state, numbers, given)
            outcomes |= zip(valid, results, strict=True)
        except BaseException as error:  # the worker continues after every exception
            _log.warning("a call of the batched reasoner failed", exc_info=True)
            if any(leaf.is_deleted() for leaf in jax.tree.leaves(rows.state)):
                self._rows = _Rows(self._count)  # the state was donated: every row is lost
            why = f"the background model failed: {type(error).__name__}: {error}"
            for call in valid:
                call.row.give_back()
                outcomes[call] = RuntimeError(why)
        return list(outcomes.values())

    def _batch(
        self, kind: str, state: ReasonerState, numbers: list[int], given: list[Any]
    ) -> tuple[ReasonerState, list[Any]]:
        """Calls one of the functions for some rows, padded to one of the sizes.

        Args:
          kind: Name of the function.
          state: State of all rows, which is donated.
          numbers: The rows; fewer than `given` when a call is only compiled.
          given: The inputs of each.

        Returns:
          The state, and the result of each row, or None.
        """
        size = next(size for size in self._sizes if size >= len(given))
        rows = np.full(size, self._count, np.int32)
        rows[: len(numbers)] = numbers
        padded = [*given, *given[:1] * (size - len(given))]
        leaves = jax.tree.map(lambda *some: np.concatenate(some), *padded)
        function = getattr(self._functions, kind)
        state, results = jax.block_until_ready(function(self._packed, state, (rows, leaves)))
        return state, np.asarray(results).tolist()[: len(numbers)] or [None] * len(numbers)
