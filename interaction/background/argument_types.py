"""The types of a tool's arguments: the JSON schema of a type hint, and the check of a value.

What is checked is what the schema says, so a model is told all that a call must keep to.
"""

import datetime
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

Schema = dict[str, Any]
WANTED = (
    "int, float, str, bool, date, datetime, time, a Literal, list[T], dict[str, T], or T | None"
)
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_NAMES = {**_SCALARS, list: "array", dict: "object"}


class _Text(NamedTuple):
    """A type whose values JSON has as ISO 8601 text."""

    kind: type
    read: Callable[[str], Any]
    example: str


_TEXTS = {  # by their `format` in JSON schema
    "date": _Text(datetime.date, datetime.date.fromisoformat, "2026-12-31"),
    "date-time": _Text(
        datetime.datetime, datetime.datetime.fromisoformat, "2026-12-31T18:30:00+01:00"
    ),
    "time": _Text(datetime.time, datetime.time.fromisoformat, "18:30:00"),
}


def schema_of(hint: Any, where: str) -> Schema:  # noqa: ANN401
    """The JSON schema of a type hint.

    Args:
      hint: A type hint, as `typing.get_type_hints` returns it.
      where: What has this hint, for errors.

    Raises:
      ValueError: The hint, or a part of it, is not one of `WANTED`.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    for name, text in _TEXTS.items():
        if hint is text.kind:
            return {"type": "string", "format": name}
    if origin is Literal and all(type(one) in _SCALARS for one in parts):
        names = list(dict.fromkeys(_SCALARS[type(one)] for one in parts))
        return {"type": names[0] if len(names) == 1 else names, "enum": list(parts)}
    if origin is list:
        return {"type": "array", "items": schema_of(parts[0], where)}
    if origin is dict and parts[0] is str:
        return {"type": "object", "additionalProperties": schema_of(parts[1], where)}
    if origin in (Union, types.UnionType):
        rest = [one for one in parts if one is not type(None)]
        if len(rest) == 1:
            schema = schema_of(rest[0], where)
            if "null" not in _type_names(schema):
                schema["type"] = [*_type_names(schema), "null"]
                if "enum" in schema:
                    schema["enum"] = [*schema["enum"], None]
            return schema
    raise ValueError(f"{where}: got {hint}, wanted {WANTED}; change the parameter")


def read(schema: Mapping[str, Any], value: Any, path: str) -> Any:  # noqa: ANN401
    """Checks a parsed JSON value, and converts it to what the function takes.

    5.0 becomes 5 and 5 becomes 5.0 where the schema needs it; text becomes a date or a time.

    Args:
      schema: A schema of `schema_of`.
      value: The value.
      path: Where the value stands, such as "order.items[2]".

    Raises:
      ValueError: The value, or a part of it, has another type, is not finite, or is none of the
        choices; the error names the part.
    """
    names = _type_names(schema)
    value = _converted(value, names)
    name = _NAMES.get(type(value))
    allowed = name in names and (name != "number" or math.isfinite(value))
    choices = schema.get("enum")
    if choices is not None:
        allowed &= any(value == one and type(value) is type(one) for one in choices)
    if not allowed:
        wanted = tuple(choices) if choices else " or ".join(names)
        raise ValueError(f"{path}: got {_brief(value)}, wanted {wanted}")
    if name == "array":
        items = schema["items"]
        return [read(items, one, f"{path}[{place}]") for place, one in enumerate(value)]
    if name == "object":
        field = schema["additionalProperties"]
        return {key: read(field, one, f"{path}[{key[:40]!r}]") for key, one in value.items()}
    if name == "string" and "format" in schema:
        return _read_text(schema["format"], value, path)
    return value


def _type_names(schema: Mapping[str, Any]) -> list[str]:
    given = schema["type"]
    return given if isinstance(given, list) else [given]


def _converted(value: Any, names: list[str]) -> Any:  # noqa: ANN401
    """A number as the type that is wanted, if it can be had."""
    if type(value) is int and "number" in names and "integer" not in names:
        try:
            return float(value)
        except OverflowError:
            return math.inf  # refused as not finite
    if type(value) is float and "integer" in names and "number" not in names:
        return int(value) if value.is_integer() else value
    return value


def _read_text(name: str, value: str, path: str) -> Any:  # noqa: ANN401
    text = _TEXTS[name]
    try:
        return text.read(value)
    except ValueError:
        raise ValueError(
            f"{path}: got {_brief(value)}, wanted a {name} such as {text.example}"
        ) from None


def _brief(value: Any) -> str:  # noqa: ANN401
    return repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"
