"""Requests: intents with slots, and forms, which are the phrasings of intents."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable

import numpy as np

Slots = dict[str, str]
PAUSE = "|"  # marks where a speaker may pause in a template
HELD_OUT_ONE_IN = 12  # one combination in so many is held out, where a hash decides


@dataclasses.dataclass(frozen=True)
class Intent:
    """Something that a user may want, with all its phrasings."""

    name: str
    answer: Callable[[Slots], str]  # the right answer
    templates: tuple[str, ...]  # the phrasings
    slots: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # name -> values
    valid: Callable[[Slots], bool] = lambda slots: True  # False for senseless combinations
    held_out: Callable[[Slots], bool] | None = None  # None: no combination is held out
    weight: float = 1.0  # relative frequency among intents
    long: bool = False  # the answer usually lasts longer than 2 s
    fix: str = ""  # slot that a user may correct: "... no wait germany"


@dataclasses.dataclass(frozen=True)
class Form:
    """One phrasing of an intent. Its template has slots in braces; `|` allows a pause."""

    name: str
    template: str
    intent: Intent

    def text(self, slots: Slots) -> str:
        """Words of the request."""
        return " ".join(self.parts(slots)).strip()

    def parts(self, slots: Slots) -> list[str]:
        """Words of the request, cut where the user may pause."""
        return [part.strip().format(**slots) for part in self.template.split(PAUSE)]

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches every text of this form, also with senseless combinations of slots."""
        plain = " ".join(self.template.replace(PAUSE, " ").split())
        return re.compile(
            re.sub(
                r"\{(\w+)\}",
                lambda match: "(?:" + "|".join(self.intent.slots[match.group(1)]) + ")",
                plain,
            )
        )

    @property
    def fixable(self) -> bool:
        """Whether the request ends with the slot that a user may correct."""
        return bool(self.intent.fix) and self.template.endswith("{" + self.intent.fix + "}")


def combination_hash(intent: str, slots: Slots) -> int:
    """A hash of an intent and the values of its slots, the same in every process."""
    key = intent + "".join(f"|{name}={slots[name]}" for name in sorted(slots))
    return zlib.crc32(key.encode())


def hashed(intent: str) -> Callable[[Slots], bool]:
    """A rule that holds out one combination in `HELD_OUT_ONE_IN`, by `combination_hash`."""
    return lambda slots: combination_hash(intent, slots) % HELD_OUT_ONE_IN == 0


def is_held_out(form: Form, slots: Slots) -> bool:
    """Whether training never has this combination of words."""
    return form.intent.held_out is not None and form.intent.held_out(slots)


def draw_slots(form: Form, rng: np.random.Generator, held_out: bool) -> Slots:
    """Draws valid values of all slots.

    Args:
      form: Form of the request.
      rng: Source of the draws.
      held_out: Whether the combination of values is held out.

    Raises:
      ValueError: There is no such combination, or none came up in 10,000 draws.
    """
    for _ in range(10_000 if form.intent.held_out or not held_out else 0):
        slots = {
            name: values[int(rng.integers(len(values)))]
            for name, values in form.intent.slots.items()
        }
        if form.intent.valid(slots) and is_held_out(form, slots) == held_out:
            return slots
    raise ValueError(
        f"held_out: got {held_out} for form {form.name}, wanted a form that has such combinations; "
        "ask for held-out values of compositional forms only"
    )
