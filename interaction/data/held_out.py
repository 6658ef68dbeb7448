"""Sessions with one request each, a held-out combination of words, evenly over the forms."""

import numpy as np

from interaction.data import domain
from interaction.data.sessions import COMPOSITIONAL_FORMS, SCENARIOS, Session, StoredSession

PAUSE_SHARE = SCENARIOS["pause"] / (SCENARIOS["plain"] + SCENARIOS["pause"])  # of the requests


def deal_form(seed: int, index: int) -> domain.Form:
    """The form of session `index`, one that has held-out combinations.

    Forms are dealt like cards: every len(COMPOSITIONAL_FORMS) sessions have each form once, in a
    new order.
    """
    deal, place = divmod(index, len(COMPOSITIONAL_FORMS))
    # The last number tells these draws from those of a session, whose seed is (seed, index).
    order = np.random.default_rng((seed, deal, 1)).permutation(len(COMPOSITIONAL_FORMS))
    return COMPOSITIONAL_FORMS[int(order[place])]


def make_held_out_session(seed: int, index: int, turns: int = 80) -> StoredSession:
    """Makes a session of a held-out voice with one request, which training never has.

    Args:
        seed: >= 0, of all sessions together.
        index: >= 0, of this one; it says which form the request has, see `deal_form`.
        turns: length in micro-turns of 200 ms.

    Returns:
        See `make_session`.

    Raises:
        ValueError: the request does not fit into the session.
    """
    form = deal_form(seed, index)
    session = Session(np.random.default_rng((seed, index)), "heldout", turns)
    slots = domain.draw_slots(form, session.rng, held_out=True)
    paused = session.rng.random() < PAUSE_SHARE
    if session.ask(form, slots, session.now, paused=paused) is None:
        raise ValueError(
            f"turns: got {turns}, too few for {form.text(slots)!r}, wanted 80; ask for more"
        )
    return session.record(session.surroundings())
