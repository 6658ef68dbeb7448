"""`Rows`: the batch of a jitted step, whose rows sessions take and give back between steps."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from interaction.config import ModelConfig
from interaction.engine.chunk_checks import chunk_forms
from interaction.types import Chunk, Reply


class BatchModel(Protocol):
    """The interface of a model whose batch `Rows` runs; `live_model.InteractionModel` has it."""

    config: ModelConfig
    tokenizer: Any

    def fingerprint(self) -> str:
        """Identity of the model."""

    def init_state(self, sessions: int, seed: int = 0) -> Any:  # noqa: ANN401
        """A fresh state of `sessions` sessions."""

    def init_row(self, seed: int) -> Any:  # noqa: ANN401
        """A fresh session, in the form of `take_row`."""

    def compile(self, sessions: int, *, frames: bool) -> None:
        """Compiles all that a batch of `sessions` sessions needs."""

    def step(self, state: Any, chunk: Chunk) -> tuple[Any, Reply]:  # noqa: ANN401
        """Takes one micro-turn of every session; the state is donated."""

    def take_row(self, state: Any, row: int) -> Any:  # noqa: ANN401
        """A copy of one session."""

    def put_row(self, state: Any, row: int, one: Any) -> Any:  # noqa: ANN401
        """The state with a session in a row; the state is donated."""

    def pack_row(self, one: Any) -> dict[str, Any]:  # noqa: ANN401
        """A session from `take_row` in a form for files; for any thread."""

    def unpack_row(self, packed: Any, where: object) -> Any:  # noqa: ANN401
        """The session that `pack_row` packed; a ValueError that begins with `where` if it fails."""

    def before_step(self, state: Any) -> Any:  # noqa: ANN401
        """What the next step changes, see `session_rows.before_step`."""

    def take_back(self, state: Any, undo: Any, row: int) -> Any:  # noqa: ANN401
        """The state with one session before the step of `undo`; the state is donated."""


class RowInput(NamedTuple):
    """What a session takes in one micro-turn."""

    audio: np.ndarray  # float32[turn_samples], the user's PCM in [-1, 1]
    arrived: np.ndarray | None = None  # int32[text_slots], PAD where empty; None without text
    frame: np.ndarray | None = None  # float32[size, size, 3], RGB in [0, 1]


class _Step(NamedTuple):
    """A step in the log."""

    undo: Any  # what it changed, see `session_rows.before_step`
    stepped: set[int]  # rows whose sessions took part
    first: dict[int, int]  # row -> seed of the sessions whose first micro-turn it was


class FullError(ValueError):
    """All rows are taken."""


class Rows:
    """A batch of sessions; its methods are called from one thread.

    A row is a number from 0. A row that gets no input in a step keeps its session bit for bit.
    """

    def __init__(
        self, model: BatchModel, rows: int, *, frames: bool = False, rewind: int = 0
    ) -> None:
        """Compiles everything that is called later, and makes the state of all rows.

        Args:
          model: The model.
          rows: Number of rows.
          frames: Whether sessions may have video frames.
          rewind: Most micro-turns that `rewind` takes back.
        """
        self.model, self.count = model, rows
        self._frames = frames
        model.compile(rows, frames=frames)
        self._state = model.init_state(rows)
        self._free = list(reversed(range(rows)))
        self._fresh: dict[int, int] = {}  # row -> seed of a session without a micro-turn yet
        self._log: collections.deque[_Step] = collections.deque(maxlen=rewind)

    @property
    def free(self) -> int:
        """Number of rows that no session has."""
        return len(self._free)

    def allocate(self, seed: int) -> int:
        """Gives a fresh session a row, without waiting for the device.

        Args:
          seed: int32, seed of the session's sampling.

        Raises:
          FullError: All rows are taken.
          ValueError: The seed does not fit in int32.
        """
        check_seed(seed)
        row = self._take()
        self._fresh[row] = int(seed)
        return row

    def _take(self) -> int:
        if not self._free:
            raise FullError(
                f"rows: all {self.count} are taken, wanted a free one; release a session, or make "
                "the engine with more rows"
            )
        row = self._free.pop()
        for step in self._log:  # micro-turns of the session before
            step.stepped.discard(row)
        return row

    def release(self, row: int) -> None:
        """Takes the row back from its session."""
        self._fresh.pop(row, None)
        self._free.append(row)

    def snapshot(self, row: int) -> Any:  # noqa: ANN401
        """A copy of a session on the device, which later steps do not change."""
        if row in self._fresh:
            return self.model.init_row(self._fresh[row])
        return self.model.take_row(self._state, row)

    def restore(self, one: Any) -> int:  # noqa: ANN401
        """Gives a session from `snapshot`, of this model and any batch, a row.

        Raises:
          FullError: All rows are taken.
        """
        row = self._take()
        self._state = self.model.put_row(self._state, row, one)
        return row

    def fork(self, row: int) -> int:
        """Gives a copy of a session another row.

        Raises:
          FullError: All rows are taken.
        """
        return self.restore(self.snapshot(row))

    def rewind(self, row: int, micro_turns: int) -> None:
        """Takes back the newest micro-turns of a session.

        Raises:
          ValueError: The log has fewer micro-turns of the session.
        """
        log = [step for step in reversed(self._log) if row in step.stepped]
        if not isinstance(micro_turns, int | np.integer) or not 0 <= micro_turns <= len(log):
            raise ValueError(
                f"micro_turns: got {micro_turns!r}, wanted an integer of at most {len(log)}, "
                "which the log has of this session; rewind less, or make the engine with a larger "
                "`rewind`"
            )
        for step in log[:micro_turns]:
            step.stepped.discard(row)
            if row in step.first:  # before it the row holds an earlier session
                self._fresh[row] = step.first[row]
            else:
                self._state = self.model.take_back(self._state, step.undo, row)

    def step(self, inputs: Mapping[int, RowInput]) -> dict[int, Reply]:
        """Takes one micro-turn of the sessions in some rows.

        Args:
          inputs: Inputs by row, already checked.

        Returns:
          The replies by row, without the axis of sessions, on the host.
        """
        chunk = self._chunk(inputs)
        undo = self.model.before_step(self._state) if self._log.maxlen else None
        self._state, reply = self.model.step(self._state, chunk)
        reply = jax.device_get(reply)
        first = {row: self._fresh.pop(row) for row in inputs if row in self._fresh}
        if self._log.maxlen:
            self._log.append(_Step(undo, set(inputs), first))
        return {row: Reply(*(np.asarray(leaf)[row] for leaf in reply)) for row in inputs}

    def _chunk(self, inputs: Mapping[int, RowInput]) -> Chunk:
        fields: dict[str, Any] = {
            name: np.zeros(*form)
            for name, form in chunk_forms(self.model.config, self.count).items()
            if name in _ALWAYS or any(_has(one, name) for one in inputs.values())
        }  # PAD is 0
        for row, one in inputs.items():
            fields["audio"][row], fields["active"][row] = one.audio, True
            if row in self._fresh:
                fields["reset"][row], fields["seed"][row] = True, self._fresh[row]
            if one.arrived is not None:
                fields["text"][row] = one.arrived
            if one.frame is not None:
                fields["frame"][row], fields["has_frame"][row] = one.frame, True
        return Chunk(**fields)


def check_seed(seed: int) -> None:
    """Refuses a seed of a session.

    Raises:
      ValueError: It is no integer, or does not fit in int32.
    """
    limits = np.iinfo(np.int32)
    if not isinstance(seed, int | np.integer) or not limits.min <= seed <= limits.max:
        raise ValueError(f"seed: got {seed!r}, wanted an integer of 32 bits; pass another one")


_ALWAYS = ("audio", "active", "reset", "seed")


def _has(one: RowInput, name: str) -> bool:
    """Whether an input needs a field of the chunk beside `_ALWAYS`."""
    return one.arrived is not None if name == "text" else one.frame is not None
