"""Calls of tools as chat endpoints send them: in parts, and sometimes as text among the words."""

import dataclasses
import json
import re
from typing import Any

from interaction.background.toolbox import clean_text

_CALLS = 8  # most calls of one response
_ARGUMENTS = 10_000  # most characters of a call's arguments


@dataclasses.dataclass
class ChatCall:
    """One call."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # goes back as it came

    def parsed(self) -> dict[str, Any]:
        """The arguments; none at all count as an empty object, JSON in JSON is unpacked.

        Raises:
          ValueError: They are not a JSON object.
        """
        value = _load(self.arguments)
        if isinstance(value, str):
            value = _load(value)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"arguments: got a {type(value).__name__}, wanted a JSON object")
        return value or {}

    def complete(self) -> bool:
        """Whether the arguments are a whole object already."""
        try:
            return bool(self.arguments.strip()) and self.parsed() is not None
        except ValueError:
            return False

    def to_text(self) -> str:
        """JSON for `Toolbox.start`; arguments that are no object stay, for its error message."""
        try:
            return json.dumps({"tool": self.name} | self.parsed() | {"tool": self.name})
        except ValueError:
            return self.arguments

    def to_json(self) -> dict[str, Any]:
        """The call for the history, which strict endpoints take whatever the arguments were."""
        try:
            arguments = clean_text(json.dumps(self.parsed(), ensure_ascii=False))
        except ValueError:
            arguments = "{}"
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:64] or "unknown"
        function = {"name": name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function, **self.extra}


def _load(text: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text.strip() or "{}", parse_constant=_refuse)
    except RecursionError:
        raise ValueError("arguments: got too many levels") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class CallParts:
    """Puts the calls of one response together."""

    def __init__(self) -> None:
        """Begins without calls."""
        self.calls: list[ChatCall] = []
        self._by_index: dict[str, ChatCall] = {}

    def add(self, part: dict[str, Any]) -> bool:
        """Adds a part; some endpoints number all calls 0, or repeat or omit index, id or name.

        Args:
          part: An element of `tool_calls`.

        Returns:
          Whether there was anything in it.

        Raises:
          ValueError: There are too many calls, or too long ones.
        """
        function = part.get("function")
        function = function if isinstance(function, dict) else {}
        name, given = function.get("name"), function.get("arguments")
        name = name.strip() if isinstance(name, str) else ""
        text = given if isinstance(given, str) else "" if given is None else json.dumps(given)
        new, index = clean_text(str(part.get("id") or "")), part.get("index")
        call = self._find(None if index is None else str(index), new, name)
        if not (new or name or text) or (call is None and not (name or text)):
            return False
        if call is None or (name and _begins(call, new, name, text)):
            call = ChatCall()
            self.calls.append(call)
        elif text == call.arguments and call.complete():
            text = ""  # the whole call once more
        if index is not None:
            self._by_index[str(index)] = call
        call.id, call.name = call.id or new, call.name or name
        call.arguments = text if text and call.arguments == "{}" else call.arguments + text
        if isinstance(part.get("extra_content"), dict):  # signatures that Gemini wants back
            call.extra["extra_content"] = part["extra_content"]
        if len(self.calls) > _CALLS or len(call.arguments) > _ARGUMENTS:
            raise ValueError("too many calls, or too long ones")
        return True

    def _find(self, index: str | None, new: str, name: str) -> ChatCall | None:
        """The call that a part may belong to."""
        if index is not None and (index in self._by_index or name):
            return self._by_index.get(index)
        same = [one for one in self.calls if new and one.id == new]
        last = [] if new and name else self.calls[-1:]
        return next(iter(same or last), None)


def _begins(call: ChatCall, new: str, name: str, text: str) -> bool:
    """Whether a part with a name begins another call."""
    other_name = call.name not in ("", name)
    other_id = bool(new and call.id and new != call.id)
    again = bool(text.strip()) and text != call.arguments and call.complete()
    return other_name or other_id or (again and call.arguments != "{}")


def written_calls(text: str) -> list[ChatCall]:
    """Calls that were written as text: JSON of one or of a list.

    Args:
      text: For example {"name": "clock", "arguments": {}}.

    Raises:
      ValueError: It is something else.
    """
    try:
        value = _load(text)
        found = []
        for one in value if isinstance(value, list) else [value] if value else []:
            given = one.get("arguments", one.get("parameters"))
            arguments = given if isinstance(given, str) else json.dumps(given or {})
            found.append(ChatCall(name=str(one["name"]), arguments=arguments))
    except (ValueError, AttributeError, KeyError):
        raise ValueError(f"got a call that cannot be read: {text.strip()[:80]!r}") from None
    return found
