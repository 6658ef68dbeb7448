"""Runs a recorded session again, bit for bit, without agent and tools."""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from interaction.engine.session_file import unpack_state
from interaction.engine.session_record import (
    Model,
    check_alone,
    check_identity,
    make_chunk,
    read,
)
from interaction.pretrained.fingerprints import fingerprint


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of running a record again."""

    turns: int  # micro-turns that were run
    equal: bool  # whether all outputs are equal bit for bit
    difference: str  # the first difference, in words; "" if there is none
    complete: bool  # whether the record is complete
    problem: str  # see `Record.problem`


def replay(path: str | os.PathLike, model: Model) -> Replay:
    """Runs a session again from its recorded inputs, without agent and tools.

    Args:
      path: Path of a record.
      model: The model of the record, on devices of the same kind.

    Returns:
      Whether all outputs are equal bit for bit.

    Raises:
      ValueError: See `read` and `check_alone`; or the record is of another model.
    """
    check_alone(model)
    place, record = pathlib.Path(path), read(path)
    check_identity(place, record.header.model, fingerprint(model.config, model.params))
    state = model.init_state(1, record.header.seed)
    if record.header.state is not None:
        state = unpack_state(record.header.state, state, place)
    difference = ""
    for entry in record.entries:
        state, reply = model.step(state, make_chunk(entry.audio, entry.arrived, entry.frame))
        reply = jax.device_get(reply)
        wrong = [
            name
            for name, got, wanted in (
                ("text", reply.text[0], np.int32(entry.text)),
                ("user_transcript", reply.user_transcript[0], entry.user_transcript),
                ("audio", reply.audio[0], entry.speech),
            )
            if np.asarray(got).tobytes() != wanted.tobytes()
        ]
        if wrong and not difference:
            difference = f"{' and '.join(wrong)} of micro-turn {entry.turn}"
    problem = record.problem
    return Replay(len(record.entries), not difference, difference, record.complete, problem)
