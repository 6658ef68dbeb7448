"""Sessions of held-out requests: one request each, equally many of each form, none in training."""

import json
from collections import Counter

import numpy as np
import pytest

from interaction.data import domain, make_session, voices
from interaction.data.domain import asides
from interaction.data.held_out import deal_form, make_held_out_session
from interaction.data.stored_session import ARRAYS, StoredSession

# Intents with held-out combinations, as short.py and longer.py list them -> number of phrasings.
HELD_OUT_FORMS = {
    "sum": 5, "larger": 3, "bigger": 2, "smaller": 2, "category": 3,
    "repeat2": 5, "repeat3": 5, "repeat4": 5, "reverse": 3, "timer": 4, "alarm": 3,
    "reminder": 3, "device": 4, "shopping": 4, "range": 3, "range_down": 2,
}  # fmt: skip


def test_forms_come_equally_often() -> None:
    total = sum(HELD_OUT_FORMS.values())
    counts = Counter(deal_form(3, index).name for index in range(7 * total))
    assert set(counts.values()) == {7}
    assert counts.keys() == {
        f"{intent}.{number}"
        for intent, phrasings in HELD_OUT_FORMS.items()
        for number in range(1, phrasings + 1)
    }
    part = Counter(deal_form(3, index).name for index in range(2 * total + 20))
    assert set(part.values()) == {2, 3}


def test_each_deal_has_an_order_of_its_own() -> None:
    total = sum(HELD_OUT_FORMS.values())
    orders = {
        tuple(deal_form(seed, index).name for index in range(first, first + total))
        for seed in (3, 4)
        for first in (0, total, 2 * total)
    }
    assert len(orders) == 6


def _slots(event: dict) -> tuple[domain.Form, domain.Slots]:
    """The form of an event, and the slots whose words it has."""
    form = domain.form(event["form"])
    words = event["text"].split()
    for opener in ("", *asides.OPENERS):
        text = " ".join(words).removeprefix(f"{opener} " if opener else "")
        for slots in domain.all_slots(form.intent):
            if form.text(slots) == text:
                return form, slots
    raise AssertionError(event["text"])


def test_every_request_is_a_held_out_combination() -> None:
    kinds = Counter()
    for index in range(40):
        form = deal_form(5, index)
        if form.intent.name.startswith("repeat"):
            continue  # there are so many combinations that finding the slots takes seconds
        meta = json.loads(make_held_out_session(5, index)["meta"])
        (event,) = meta["events"]
        assert event["form"] == form.name and event["held_out"] is True
        assert domain.is_held_out(*_slots(event))
        assert event["answer"] == form.intent.answer(_slots(event)[1])
        assert event["answer_end_turn"] < meta["turns"]
        assert meta["split"] == "heldout"
        assert meta["voice"].split(":")[1].rsplit("+")[-1] in voices.HELD_OUT_VARIANTS
        kinds[event["kind"]] += 1
    assert set(kinds) == {"request", "pause_request"} and kinds["request"] > 8


def test_training_never_has_them() -> None:
    """No request of these sessions is one of a training session."""
    held_out = {_words(make_held_out_session(5, index)) for index in range(20)}
    assert len(held_out) == 20
    for index in range(12):
        meta = json.loads(make_session((5, index), "train")["meta"])
        assert not any(event["held_out"] for event in meta["events"])
        assert not held_out & {event["text"] for event in meta["events"]}


def _words(record: StoredSession) -> str:
    return json.loads(record["meta"])["events"][0]["text"]


def test_the_same_numbers_give_the_same_bits() -> None:
    first, again = make_held_out_session(5, 2), make_held_out_session(5, 2)
    assert first["meta"] == again["meta"] != make_held_out_session(6, 2)["meta"]
    for name in ARRAYS:
        np.testing.assert_array_equal(first[name], again[name])


def test_a_request_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="turns: got 10, too few for"):
        make_held_out_session(5, 0, turns=10)
