"""What a request is: intents with slots, and their phrasings, the forms."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable

import numpy as np

Slots = dict[str, str]
PAUSE = "|"  # marks in a template where a speaker may pause
HELD_OUT_ONE_IN = 12  # share of the combinations of a compositional intent that is held out


@dataclasses.dataclass(frozen=True)
class Intent:
    """Something a user may want, with every way of asking for it.

    `slots` maps a slot to its values, `answer` makes the right answer from chosen values, and
    `valid` rules out senseless combinations.
    """

    name: str
    answer: Callable[[Slots], str]
    templates: tuple[str, ...]
    slots: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    valid: Callable[[Slots], bool] = lambda slots: True
    held_out: Callable[[Slots], bool] | None = None  # None: no combination is held out
    weight: float = 1.0  # relative frequency among intents
    long: bool = False  # the answer usually lasts longer than 2 s
    fix: str = ""  # slot that a speaker may correct: "... no wait germany"


@dataclasses.dataclass(frozen=True)
class Form:
    """One phrasing of an intent; the template's slots are in braces, `|` allows a pause."""

    name: str
    template: str
    intent: Intent

    def text(self, slots: Slots) -> str:
        """Words of the request."""
        return " ".join(self.parts(slots)).strip()

    def parts(self, slots: Slots) -> list[str]:
        """Words of the request, cut at the allowed pauses."""
        return [part.strip().format(**slots) for part in self.template.split(PAUSE)]

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches every text of this form, senseless combinations included."""
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
        """Whether the request ends with a slot that can be corrected."""
        return bool(self.intent.fix) and self.template.endswith("{" + self.intent.fix + "}")


def combination_hash(intent: str, slots: Slots) -> int:
    """A number fixed for ever for an intent with chosen values, the same in every process."""
    key = intent + "".join(f"|{name}={slots[name]}" for name in sorted(slots))
    return zlib.crc32(key.encode())


def hashed(intent: str) -> Callable[[Slots], bool]:
    """Holds out one combination in `HELD_OUT_ONE_IN`, chosen by a hash."""
    return lambda slots: combination_hash(intent, slots) % HELD_OUT_ONE_IN == 0


def is_held_out(form: Form, slots: Slots) -> bool:
    """Whether this combination of words is never used in training; a pure function."""
    return form.intent.held_out is not None and form.intent.held_out(slots)


def draw_slots(form: Form, rng: np.random.Generator, held_out: bool) -> Slots:
    """Draws valid values of all slots, held out or not as asked.

    Raises:
        ValueError: no such combination came up in 10,000 draws, or there is none.
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
