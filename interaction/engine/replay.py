"""Runs a recorded session again, bit for bit, with no agent and no tool."""

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
    """What came of running a record again."""

    turns: int
    equal: bool  # every output, bit for bit
    difference: str  # the first one, in words; "" if there is none
    complete: bool  # of the record
    problem: str


def replay(path: str | os.PathLike, model: Model) -> Replay:
    """Runs a session again from what went in, with no agent and no tool.

    Args:
      path: Of a record.
      model: The one that made it, on devices of the same kind.

    Returns:
      Whether every output is the same, bit for bit.

    Raises:
      ValueError: As `read` and `check_alone` do, or it is the record of another model.
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
