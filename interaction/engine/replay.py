"""Runs a recorded session again, bit for bit, without agent and tools."""

import dataclasses
import os

import numpy as np

from interaction.config import ModelConfig
from interaction.engine.chunk_checks import checked
from interaction.engine.rows import BatchModel, RowInput, Rows
from interaction.engine.session_record import Entry, SessionReader, check_alone, check_identity
from interaction.types import Reply


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of running a record again."""

    turns: int  # micro-turns that were run
    equal: bool  # whether all outputs are equal bit for bit
    difference: str  # the first difference, in words; "" if there is none
    complete: bool  # whether the record is complete
    problem: str  # see `Record.problem`


def replay(path: str | os.PathLike, model: BatchModel) -> Replay:
    """Runs a session again from its recorded inputs, without agent and tools.

    Args:
      path: Path of a record.
      model: The model of the record, on devices of the same kind.

    Returns:
      Whether all outputs are equal bit for bit.

    Raises:
      ValueError: The record is missing, damaged, or of another model; or see `check_alone`.
    """
    check_alone(model)
    with SessionReader(path) as record:
        header, place = record.header, record.path
        check_identity(place, header.model, model.fingerprint())
        rows = Rows(model, header.rows)
        if header.state is None:
            row = rows.allocate(header.seed)
        else:
            row = rows.restore(model.unpack_row(header.state, place))
        turns, difference = 0, ""
        for entry in record:
            try:
                reply = rows.step({row: _inputs(model.config, entry)})[row]
            except ValueError as error:
                raise ValueError(f"{place}: micro-turn {entry.turn}: {error}") from error
            turns += 1
            difference = difference or _difference(reply, entry)
    return Replay(turns, not difference, difference, not record.problem, record.problem)


def _inputs(config: ModelConfig, entry: Entry) -> RowInput:
    """The inputs of a recorded micro-turn.

    Raises:
      ValueError: They are none of the model.
    """
    arrived, frame, wanted = entry.arrived, entry.frame, (config.text_slots,)
    if arrived is not None and arrived.shape != wanted:
        raise ValueError(f"arrived: got int32{list(arrived.shape)}, wanted int32{list(wanted)}")
    audio = checked(config, "audio", entry.audio)
    return RowInput(audio, arrived, None if frame is None else checked(config, "frame", frame))


def _difference(reply: Reply, entry: Entry) -> str:
    """The outputs that differ from the recorded ones, in words; "" if there are none."""
    wrong = [
        name
        for name, got, wanted in (
            ("text", reply.text, np.int32(entry.text)),
            ("user_transcript", reply.user_transcript, entry.user_transcript),
            ("audio", reply.audio, entry.speech),
        )
        if np.asarray(got).tobytes() != wanted.tobytes()
    ]
    return f"{' and '.join(wrong)} of micro-turn {entry.turn}" if wrong else ""
