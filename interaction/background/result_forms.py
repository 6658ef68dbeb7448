"""The forms in JSON of values that JSON itself does not have.

| a result | its form |
|---|---|
| numbers and arrays of NumPy and JAX | numbers, nested lists |
| date, time, datetime, numpy.datetime64 | ISO 8601 text |
| timedelta, numpy.timedelta64 | seconds |
| Decimal, Fraction | a number, to the 15 digits of a float |
| Enum | its value |
| dataclass, NamedTuple | an object with its fields |
| set, frozenset | a list, sorted if its items can be compared |
| Path, UUID | text |
"""

import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import uuid
from typing import Any

import jax
import numpy as np

_JSON = (str, int, float, bool, type(None), list, tuple, dict)
_EXACT = 2**53  # a float holds every integer up to this


def plain(value: Any, room: int = 1_000) -> Any:  # noqa: ANN401
    """Converts a value to a type that JSON has; the parts of it are left as they are.

    Args:
      value: Any value.
      room: Most items of an array or a set that are needed.

    Returns:
      None, a bool, int, float, str, list, tuple or dict.

    Raises:
      ValueError: The value has no form in JSON.
    """
    if type(value) in _JSON:
        return value
    match value:
        case enum.Enum():
            return plain(value.value, room)
        case datetime.date() | datetime.time():  # a datetime is a date
            return value.isoformat()
        case datetime.timedelta():
            return _number(value.total_seconds())
        case decimal.Decimal() | fractions.Fraction():
            return _number(value)
        case pathlib.PurePath() | uuid.UUID():
            return str(value)
        case set() | frozenset():
            return _listed(value, room)
        case np.generic() | np.ndarray() | jax.Array():
            return _from_array(np.asarray(value), room)
        case tuple() if hasattr(value, "_fields"):
            return dict(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, _JSON):
        return value
    raise ValueError(f"got a {type(value).__name__}, wanted a value that has a form in JSON")


def _number(value: decimal.Decimal | fractions.Fraction | float) -> int | float:
    try:
        number = float(value)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"got a {type(value).__name__} that is no float ({error})") from None
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def _listed(value: set | frozenset, room: int) -> list:
    if len(value) > room:  # it is cut anyway, and sorting it would read all of it
        return [item for item, _ in zip(value, range(room), strict=False)]
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def _from_array(array: np.ndarray, room: int) -> Any:  # noqa: ANN401
    if array.ndim:
        return list(array[: max(room, 0)])
    if array.dtype.kind in "mM":
        return _from_time(array)
    value = array.item()
    if isinstance(value, np.generic):  # a type that Python does not have, such as bfloat16
        value = float(value)
    return plain(value, room)


def _from_time(array: np.ndarray) -> str | int | float:
    """ISO text of a numpy.datetime64, or the seconds of a numpy.timedelta64."""
    if np.isnat(array):
        raise ValueError("got NaT, wanted a time")
    if array.dtype.kind == "M":
        return str(array)
    if np.datetime_data(array.dtype)[0] in ("Y", "M", "generic"):
        raise ValueError(f"got a {array.dtype}, which is no fixed number of seconds")
    return _number(float(array / np.timedelta64(1, "s")))
