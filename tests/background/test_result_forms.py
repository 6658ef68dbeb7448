"""Results of tools: the forms in JSON of NumPy's values, dates, records and others."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import pathlib
import time
import uuid
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from interaction.background.tool import tool
from interaction.background.toolbox import LIMIT, Toolbox, result_json
from tests.background.fakes import wait_for


class Colour(enum.Enum):
    RED = "red"
    DAY = datetime.date(2026, 1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Place(NamedTuple):
    room: str
    shelf: np.int64


@dataclasses.dataclass(frozen=True)
class Offer:
    price: decimal.Decimal
    places: list[Place]
    until: datetime.date | None = None


HOUR = datetime.timezone(datetime.timedelta(hours=1))
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=HOUR)
IDENTITY = "12345678-1234-5678-1234-567812345678"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (np.int64(7), "7"),
        (np.uint8(255), "255"),
        (np.float32(0.5), "0.5"),
        (np.float64(2.25), "2.25"),
        (np.bool_(True), "true"),
        (np.str_("milk"), '"milk"'),
        (ml_dtypes.bfloat16(1.5), "1.5"),
        (np.longdouble(0.25), "0.25"),
        (np.arange(6).reshape(2, 3), "[[0, 1, 2], [3, 4, 5]]"),
        (np.array(3.5), "3.5"),
        (np.array([]), "[]"),
        (np.array(["a", "b"]), '["a", "b"]'),
        (np.array([1, None, Level.HIGH], object), "[1, null, 3]"),
        (np.array([1.5, 2.0], ml_dtypes.bfloat16), "[1.5, 2.0]"),
        (jnp.array([1.5, 2.0]), "[1.5, 2.0]"),
        (jnp.int32(4), "4"),
        (np.datetime64("2026-01-02"), '"2026-01-02"'),
        (np.datetime64("2026-01-02T03:04:05.000000001"), '"2026-01-02T03:04:05.000000001"'),
        (np.array(["2026-01", "2026-02"], "M8[D]"), '["2026-01-01", "2026-02-01"]'),
        (np.timedelta64(90, "m"), "5400"),
        (np.timedelta64(1500, "ms"), "1.5"),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (datetime.time(18, 30), '"18:30:00"'),
        (MOMENT, '"2026-01-02T03:04:05+01:00"'),
        (datetime.timedelta(minutes=1, milliseconds=500), "60.5"),
        (datetime.timedelta(hours=-1), "-3600"),
        (decimal.Decimal("5.25"), "5.25"),
        (decimal.Decimal("3.00"), "3"),
        (decimal.Decimal("0.1"), "0.1"),
        (fractions.Fraction(1, 4), "0.25"),
        (fractions.Fraction(10**300), "1e+300"),
        (Colour.RED, '"red"'),
        (Colour.DAY, '"2026-01-02"'),
        (Level.HIGH, "3"),
        (Place("kitchen", np.int64(2)), '{"room": "kitchen", "shelf": 2}'),
        (
            Offer(decimal.Decimal("5.25"), [Place("hall", np.int64(1))], datetime.date(2026, 1, 2)),
            '{"price": 5.25, "places": [{"room": "hall", "shelf": 1}], "until": "2026-01-02"}',
        ),
        ({3, 1, 2}, "[1, 2, 3]"),
        (frozenset({"b", "a"}), '["a", "b"]'),
        (pathlib.PurePosixPath("/a/b"), '"/a/b"'),
        (uuid.UUID(IDENTITY), f'"{IDENTITY}"'),
        ({datetime.date(2026, 1, 2): 1, Colour.RED: 2}, '{"2026-01-02": 1, "red": 2}'),
        (collections.OrderedDict(a=np.int8(1)), '{"a": 1}'),
        ([{"deep": (np.float16(0.5), {Level.HIGH})}], '[{"deep": [0.5, [3]]}]'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_passes_in_its_form(value: Any, form: str) -> None:  # noqa: ANN401
    assert result_json(value) == f'{{"result": {form}}}'


def test_a_set_whose_items_cannot_be_compared_is_a_list() -> None:
    got = json.loads(result_json({1, "a", None}))["result"]
    assert len(got) == 3 and set(got) == {1, "a", None}


def test_the_call_of_a_tool_gives_such_a_value() -> None:
    @tool
    def offer() -> Offer:
        """Makes an offer."""
        return Offer(decimal.Decimal(2), [])

    call = Toolbox([offer]).call("offer", {})
    wait_for(call.done)
    assert call.result() == '{"result": {"price": 2, "places": [], "until": null}}'


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.complex64(1j), "got a complex"),
        (np.array([1.0, np.nan]), "got nan"),
        (jnp.array(jnp.inf), "got inf"),
        (np.bytes_(b"x"), "got a bytes"),
        (np.datetime64("NaT"), "got NaT"),
        (np.timedelta64(1, "M"), "no fixed number of seconds"),
        (decimal.Decimal("NaN"), "got nan"),
        (decimal.Decimal("sNaN"), "got a Decimal that is no float"),
        (decimal.Decimal("1e400"), "got inf"),
        (fractions.Fraction(10**400), "got a Fraction that is no float"),
        (Offer, "got a type"),
        ([object()], "got a object"),
        ({Level.HIGH: 1}, "a key of type Level"),
        ({b"a": 1}, "got a bytes"),
        ((one for one in "ab"), "got a generator"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_form_is_refused(value: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^result: ") as caught:
        result_json(value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(10**8, np.int8),
        np.zeros((10_000, 10_000), np.int8),
        set(map(str, range(10**6))),
        Offer(decimal.Decimal(1), [Place("kitchen", np.int64(1))] * 10**6),
        {datetime.date.fromordinal(one + 1): one for one in range(10**6)},
    ],
    ids=["array", "matrix", "set", "dataclass", "dates"],
)
def test_a_large_value_is_cut_without_being_read_in_full(value: Any) -> None:  # noqa: ANN401
    start = time.thread_time()
    text = result_json(value)
    assert time.thread_time() - start < 0.05  # 0.002 to 0.01 s; to read all takes 0.3 s or more
    assert LIMIT // 2 < len(text) <= LIMIT and json.loads(text)["cut"] is True
