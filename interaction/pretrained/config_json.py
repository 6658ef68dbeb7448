"""Config dataclasses to JSON, and from JSON with a check of every field."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

_Config = TypeVar("_Config")


def config_to_json(config: Any) -> str:  # noqa: ANN401
    """A config dataclass as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(
    cls: type[_Config], fields: Mapping[str, Any], name: str = "config"
) -> _Config:
    """Builds a config dataclass from parsed JSON; absent fields take their defaults.

    Raises:
      ValueError: A field is unknown, of the wrong type, or refused by the checks of the dataclass.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"{name}: got {fields!r}, wanted a JSON object; correct it")
    schema: Any = cls
    known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(schema)}
    values = {}
    for key, value in fields.items():
        kind = known.get(key)
        if kind is None:
            raise ValueError(
                f"{name}.{key}: unknown field, wanted one of {sorted(known)}; remove it"
            )
        if isinstance(value, Mapping) and (kind := _dataclass(kind, value)):
            values[key] = config_from_json(kind, value, f"{name}.{key}")
        elif kind == tuple[int, ...] and isinstance(value, list):
            if not all(type(one) is int for one in value):
                raise ValueError(f"{name}.{key}: got {value!r}, wanted integers; correct it")
            values[key] = tuple(value)
        elif type(value) is kind or (kind is float and type(value) is int):
            values[key] = kind(value)
        else:
            raise ValueError(
                f"{name}.{key}: got {value!r}, wanted {getattr(kind, '__name__', kind)}; correct it"
            )
    return cls(**values)


def _dataclass(kind: Any, fields: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The dataclass that a field takes, of several the first that knows all fields; else None."""
    found = [one for one in (typing.get_args(kind) or (kind,)) if dataclasses.is_dataclass(one)]
    fits = [
        one for one in found if set(fields) <= {field.name for field in dataclasses.fields(one)}
    ]
    return (fits or found or [None])[0]
