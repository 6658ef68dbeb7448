"""Sessions in which nobody asks and the model says line after line: what a flow head learns from.

Half of the lines are answers, half are their words in random order: a head that hears few sentences
learns them by heart, and stumbles over words that it knows in an order that it does not.
"""

import json
from collections.abc import Sequence

import numpy as np

from interaction.data import clips, domain, timing
from interaction.data.sessions import Record, int16, place_answer
from interaction.types import Special

ANSWER_SHARE = 0.5  # of the lines
WORDS = (2, 9)  # fewest and most words in random order
REST = (2, 6)  # fewest and most silent micro-turns before a line


def line(rng: np.random.Generator) -> str:
    """An answer to no held-out combination, or words in random order."""
    if rng.random() < ANSWER_SHARE:
        form = domain.draw_form(rng)
        return form.intent.answer(domain.draw_slots(form, rng, held_out=False))
    count = int(rng.integers(WORDS[0], WORDS[1] + 1))
    return " ".join(rng.choice(domain.answer_words(), count))


def make_recital(seed: Sequence[int], turns: int = 80) -> Record:
    """Makes one recital; the same arguments give the same bits.

    Args:
        seed: any integers >= 0.
        turns: length in micro-turns of 200 ms.

    Returns:
        As `make_session` returns it, with a user who is silent, and no events in the meta.

    Raises:
        EngineMissing: flite is not installed.
    """
    rng = np.random.default_rng(list(seed))
    model = np.zeros(turns * timing.TURN, np.float32)
    text = np.full(turns, Special.SILENT, np.int32)
    first = int(rng.integers(*REST, endpoint=True))
    while first < turns:
        end = place_answer(model, text, clips.assistant_clip(line(rng)), first)
        first = end + int(rng.integers(*REST, endpoint=True))
    return {
        "user": np.zeros(turns * timing.TURN, np.int16),
        "model": int16(model),
        "text": text,
        "heard": np.full((turns, 2), Special.NONE, np.int32),
        "meta": json.dumps({"turns": turns, "split": "train", "events": []}),
    }
