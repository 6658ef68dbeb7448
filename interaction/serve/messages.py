"""What the messages of all protocols have in common."""

import base64
import binascii
import json
import math
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_KINDS = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_LONGEST_ID = 512  # characters
_DEEPEST = 32  # levels of a message


class ProtocolError(Exception):
    """A message that is refused; the session has not changed.

    Attributes:
      message: What came, what was wanted, and the fix.
      code: One of the protocol's codes, such as "invalid_value".
      param: The field, with dots between names.
      event_id: The client's id of the message.
    """

    def __init__(
        self, message: str, code: str = "invalid_value", param: str = "", event_id: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.param, self.event_id = message, code, param, event_id


class Strict(BaseModel):
    """A part of a message, without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClientMessage(Strict):
    """A message of a client."""

    event_id: str | None = Field(None, max_length=_LONGEST_ID)


def read_message(text: str | bytes, forms: Mapping[str, type[ClientMessage]]) -> Any:  # noqa: ANN401
    """Reads a message of a client.

    Args:
      text: JSON of an object.
      forms: The class of each `type` of message.

    Raises:
      ProtocolError: It is no JSON object, of an unknown type, or has a wrong field.
    """
    try:
        fields = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("message: got no JSON, wanted one object", "invalid_json") from error
    if not isinstance(fields, dict):
        raise ProtocolError(
            f"message: got a JSON {type(fields).__name__}, wanted an object", "invalid_json"
        )
    event_id = fields.get("event_id")
    event_id = event_id[:_LONGEST_ID] if isinstance(event_id, str) else ""
    if _is_deep(fields, _DEEPEST):
        text = f"message: got more than {_DEEPEST} levels, wanted fewer"
        raise ProtocolError(text, "invalid_json", event_id=event_id)
    kind = fields.get("type")
    form = forms.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise ProtocolError(
            f"type: got {str(kind)[:80]!r}, wanted one of {', '.join(forms)}",
            "unknown_event" if isinstance(kind, str) else "missing_required_parameter",
            "type",
            event_id,
        )
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        code = _KINDS.get(first["type"], "invalid_value")
        raise ProtocolError(f"{param}: {first['msg']}", code, param, event_id) from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"got {text}, wanted a finite number")
    return value


def _is_deep(value: Any, levels: int) -> bool:  # noqa: ANN401
    """Whether a value has more levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(one, levels - 1) for one in inner)


def decode_base64(text: str, field: str) -> bytes:
    """The bytes of a field.

    Raises:
      ProtocolError: It is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{field}: got no base64", param=field) from error


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{secrets.token_hex(16)}"
