"""Sessions with one request each, a held-out combination of words, evenly over the forms."""

import numpy as np

from interaction.data import domain
from interaction.data.scenarios import SCENARIOS
from interaction.data.session_builder import COMPOSITIONAL_FORMS, SessionBuilder
from interaction.data.stored_session import StoredSession

# Share of the requests with a pause inside, as in other sessions.
PAUSE_SHARE = SCENARIOS["pause"].weight / (SCENARIOS["plain"].weight + SCENARIOS["pause"].weight)


def deal_form(seed: int, index: int) -> domain.Form:
    """The form of session `index`, one that has held-out combinations.

    Each run of len(COMPOSITIONAL_FORMS) sessions has every form once, in a new random order.
    """
    deal, place = divmod(index, len(COMPOSITIONAL_FORMS))
    # The last number separates these draws from those of a session, whose seed is (seed, index).
    order = np.random.default_rng((seed, deal, 1)).permutation(len(COMPOSITIONAL_FORMS))
    return COMPOSITIONAL_FORMS[int(order[place])]


def make_held_out_session(seed: int, index: int, turns: int = 80) -> StoredSession:
    """Makes a session in which a held-out voice makes one request that training never has.

    Args:
      seed: >= 0, the seed of the set of sessions.
      index: >= 0, the number of this session; it decides the form, see `deal_form`.
      turns: Length in micro-turns of 200 ms.

    Returns:
      See `stored_session`; the fields for the background model are empty.

    Raises:
      ValueError: The request does not fit into the session.
      EngineMissing: espeak-ng or flite is not installed.
    """
    form = deal_form(seed, index)
    builder = SessionBuilder(np.random.default_rng((seed, index)), "heldout", turns)
    slots = domain.draw_slots(form, builder.rng, held_out=True)
    paused = builder.rng.random() < PAUSE_SHARE
    if builder.ask(form, slots, builder.now, paused=paused) is None:
        raise ValueError(
            f"turns: got {turns}, too few for {form.text(slots)!r}, wanted 80; ask for more"
        )
    return builder.record(builder.surroundings())
