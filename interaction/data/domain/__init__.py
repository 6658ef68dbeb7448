"""The closed domain of the demo: what users can ask, and the right answers."""

import itertools
from collections.abc import Iterator

import numpy as np

from interaction.data.domain import asides, tool_requests
from interaction.data.domain.form import Form, Intent, Slots, draw_slots, is_held_out
from interaction.data.domain.longer import LONGER
from interaction.data.domain.short import SHORT

INTENTS: tuple[Intent, ...] = (*SHORT, *LONGER)
FORMS: tuple[Form, ...] = tuple(
    Form(f"{intent.name}.{number}", template, intent)
    for intent in INTENTS
    for number, template in enumerate(intent.templates, 1)
)


def form(name: str) -> Form:
    """The form of a name.

    Raises:
      ValueError: There is none.
    """
    for candidate in FORMS:
        if candidate.name == name:
            return candidate
    raise ValueError(f"form: got {name!r}, wanted one of {len(FORMS)} names; see domain.FORMS")


def all_slots(intent: Intent) -> Iterator[Slots]:
    """Every valid combination of an intent's slot values."""
    for values in itertools.product(*intent.slots.values()):
        slots = dict(zip(intent.slots, values, strict=True))
        if intent.valid(slots):
            yield slots


def answer_words() -> list[str]:
    """Every word of the answers, in alphabetical order."""
    words = set()
    for intent in INTENTS:
        for slots in itertools.islice(all_slots(intent), 2_000):
            words.update(intent.answer(slots).split())
    return sorted(words)


def complete_forms(text: str) -> list[Form]:
    """Forms for which `text` is a whole request."""
    return [candidate for candidate in FORMS if candidate.pattern.fullmatch(text)]


def draw_form(rng: np.random.Generator, forms: tuple[Form, ...] = FORMS) -> Form:
    """Draws a form: intents by weight, and the phrasings of an intent evenly."""
    weights = np.array([f.intent.weight / len(f.intent.templates) for f in forms])
    return forms[rng.choice(len(forms), p=weights / weights.sum())]


def said_words() -> list[str]:
    """Every word of the requests, in alphabetical order."""
    words = set()
    for intent in INTENTS:
        for template in intent.templates:
            words.update(w for w in template.replace("|", "").split() if "{" not in w)
        for values in intent.slots.values():
            words.update(word for value in values for word in value.split())
    return sorted(words)


__all__ = [
    "FORMS",
    "INTENTS",
    "Form",
    "Intent",
    "Slots",
    "all_slots",
    "answer_words",
    "asides",
    "complete_forms",
    "draw_form",
    "draw_slots",
    "form",
    "is_held_out",
    "said_words",
    "tool_requests",
]
