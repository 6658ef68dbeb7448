"""Values from files, checked against type annotations."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

_WHOLE = -(1 << 63), (1 << 63) - 1  # least and largest integer


def typed(value: Any, kind: Any, where: str) -> Any:  # noqa: ANN401
    """A value of an annotated type, from the types that MessagePack has.

    Args:
      value: What was read: a list for a tuple or named tuple, a map for a dataclass.
      kind: int, float (finite), str, bool, Any, a dataclass, a named tuple, or a list, dict, tuple
        or optional type of them.
      where: File and field, for the error message.

    Returns:
      The value as that type.

    Raises:
      ValueError: Names the place, what was there and the type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        (other,) = set(inner) - {type(None)}
        return None if value is None else typed(value, other, where)
    if origin is list and isinstance(value, list):
        return [typed(one, inner[0], f"{where}[{at}]") for at, one in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(inner):
        return tuple(
            typed(one, each, f"{where}[{at}]")
            for at, (one, each) in enumerate(zip(value, inner, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {
            typed(name, inner[0], where): typed(one, inner[1], f"{where}.{name}")
            for name, one in value.items()
        }
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if set(value) == set(hints):
            return kind(**_each(value, hints, where))
    elif hasattr(kind, "_fields") and isinstance(value, list):
        hints = typing.get_type_hints(kind)
        if len(value) == len(hints):
            return kind(**_each(dict(zip(hints, value, strict=True)), hints, where))
    elif type(value) is kind and (
        kind in (str, bool)
        or (kind is int and _WHOLE[0] <= value <= _WHOLE[1])
        or (kind is float and math.isfinite(value))
    ):
        return value
    name = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise ValueError(f"{where}: got {brief(value)}, wanted {name}; copy the file again")


def _each(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {name: typed(values[name], kind, f"{where}.{name}") for name, kind in hints.items()}


def brief(value: object) -> str:
    """A value in at most 40 characters."""
    if isinstance(value, dict | list | bytes):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value[:40]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


class Fields(dict[str, Any]):
    """A map from a file; a field that is missing or of another type is a ValueError."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Takes the values.

        Args:
          values: The map.
          where: The place, for error messages: a file, and a byte or an entry in it.
        """
        super().__init__(values)
        self.where = where

    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        found = sorted(map(str, self))[:8]
        raise ValueError(
            f"{self.where}: got fields {found}, wanted also {name!r}; copy the file again"
        )

    def take(self, name: str, kind: Any, low: int | None = None, high: int | None = None) -> Any:  # noqa: ANN401
        """A field as a value of a type, see `typed`.

        Args:
          name: Name of the field.
          kind: Type of the field.
          low: Least number; None: any.
          high: Largest number; None: any.

        Raises:
          ValueError: The field is missing, of another type or out of range.
        """
        value = typed(self[name], kind, f"{self.where}: {name}")
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"{'' if low is None else low}..{'' if high is None else high}"
            raise ValueError(
                f"{self.where}: {name}: got {value}, wanted {span}; copy the file again"
            )
        return value
