"""Full-duplex sessions: the user asks, pauses, interrupts and digresses, and the model is right."""

import functools
from collections.abc import Sequence

import numpy as np

from interaction.data.scenarios import SCENARIOS, add_quiet, fill
from interaction.data.session_builder import SessionBuilder
from interaction.data.stored_session import StoredSession

QUIET = ("silence", "noise")  # sessions without a word
QUIET_SHARE = 0.08  # share of the sessions that are quiet


def make_session(
    seed: Sequence[int],
    split: str = "train",
    scenario: str | None = None,
    turns: int = 80,
    tail: int = 0,
) -> StoredSession:
    """Makes one session; the same arguments give the same bits.

    Args:
      seed: Any integers >= 0.
      split: `train`, or `heldout` with voices and word combinations that training never has.
      scenario: A name of `SCENARIOS` or `QUIET`; this scenario comes first and most often.
      turns: Length in micro-turns of 200 ms.
      tail: Micro-turns at the end in which the user does not speak.

    Returns:
      See `stored_session`; the fields for the background model are empty.

    Raises:
      ValueError: The split or the scenario is unknown.
      EngineMissing: espeak-ng or flite is not installed.
    """
    if scenario is not None and scenario not in (*SCENARIOS, *QUIET):
        raise ValueError(
            f"scenario: got {scenario!r}, wanted one of {(*SCENARIOS, *QUIET)}; name one of them"
        )
    builder = SessionBuilder(np.random.default_rng(list(seed)), split, turns, tail)
    if scenario in QUIET or (scenario is None and builder.rng.random() < QUIET_SHARE):
        kind = scenario or builder.pick(QUIET)
        add_quiet(builder, kind)
        return builder.record(kind)
    preferred = functools.partial(SCENARIOS[scenario].act, builder) if scenario else None
    fill(builder, preferred)
    return builder.record(builder.surroundings())
