"""`tool`: makes a typed Python function a tool that models can call.

The JSON schema of the arguments comes from the type hints, the descriptions from the docstring in
Google style. A parameter `cancelled: threading.Event` is hidden from models; it is set when the
result of the call is no longer needed. An `async def` function is cancelled then. A parameter
`started: float` is hidden too: when the call was first asked for, in s of `time.monotonic`, so that
a timer that is corrected keeps its start.
"""

import inspect
import json
import math
import re
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

from interaction.background import argument_types
from interaction.background.argument_types import WANTED, Schema
from interaction.background.result_forms import plain

TIMEOUT_S = 10.0  # default time limit of a call, s
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Parameter(NamedTuple):
    """One argument of a tool."""

    schema: Schema
    required: bool


class Tool:
    """A function that a model can call; calling the tool calls the function."""

    def __init__(self, function: Callable[..., Any], timeout_s: float | None = TIMEOUT_S) -> None:
        """Reads the function's signature.

        Args:
          function: A function with type hints and a docstring, or an `async def` function. Each
            call runs on its own thread, an async one in an event loop of its own. C code that
            holds the interpreter's lock would stop the conversation and needs another process.
          timeout_s: Time limit of a call, s; None means no limit.

        Raises:
          ValueError: It is no function or a generator, has no docstring, or a parameter has no
            type hint or one without a schema here.
        """
        self.function = function
        self.name = getattr(function, "__name__", "")
        if not callable(function) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"tool: got {function!r}, wanted a function with a name of letters, digits and "
                "underscores; define one with def"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError(f"tool {self.name}: got a generator; return the value, such as a list")
        self.is_async = inspect.iscoroutinefunction(function)
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ValueError(
                f"tool {self.name}: got timeout_s={timeout_s}, wanted a positive number of seconds "
                "or None; pass one"
            )
        self.timeout_s = timeout_s
        self.description, described = _docstring(function)
        if not self.description:
            raise ValueError(f"tool {self.name}: got no docstring; describe in one what it does")
        self.parameters, hidden = _parameters(self.name, function, described)
        self.takes_cancelled, self.takes_started = "cancelled" in hidden, "started" in hidden
        # Its calls only wait, such as those of a timer: nothing limits them, and they can be ended.
        self.waits = timeout_s is None and (self.takes_cancelled or self.is_async)
        # The form is that of `tools` in OpenAI's chat completions.
        self.schema: dict[str, Any] = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {name: one.schema for name, one in self.parameters.items()},
                    "required": [name for name, one in self.parameters.items() if one.required],
                    "additionalProperties": False,
                },
            },
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Calls the function; of an `async def` function the result is to be awaited."""
        return self.function(*args, **kwargs)

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Checks parsed JSON arguments.

        Args:
          arguments: Values by name.

        Returns:
          The arguments as the function takes them.

        Raises:
          ValueError: An argument is missing, unknown, or has a wrong value.
        """
        known = self.parameters
        unknown = [name for name in arguments if name not in known]
        missing = [name for name, one in known.items() if one.required and name not in arguments]
        if unknown or missing:
            what = f"no argument {unknown[0][:40]!r}" if unknown else f"{missing[0]!r} is missing"
            raise ValueError(f"{self.name}: {what}, wanted {list(known)}")
        return {
            name: argument_types.read(known[name].schema, value, f"{self.name}.{name}")
            for name, value in arguments.items()
        }


@overload
def tool(function: Callable[..., Any]) -> Tool: ...
@overload
def tool(*, timeout_s: float | None = TIMEOUT_S) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, *, timeout_s: float | None = TIMEOUT_S
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Decorates a function, `@tool` or `@tool(timeout_s=5.0)`; see `Tool`."""
    if function is not None:
        return Tool(function, timeout_s)
    return lambda function: Tool(function, timeout_s)


def _parameters(
    tool_name: str, function: Callable[..., Any], described: Mapping[str, str]
) -> tuple[dict[str, Parameter], list[str]]:
    """The parameters that models see, and the names of the hidden ones."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ValueError(
            f"tool {tool_name}: got type hints that cannot be read ({error})"
        ) from None
    parameters, hidden = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        where = f"tool {tool_name}.{name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(
                f"{where}: got a {parameter.kind.description} parameter; name each argument"
            )
        if name == "tool":
            raise ValueError(f"{where}: a call uses this name for the tool; choose another one")
        if name not in hints:
            raise ValueError(f"{where}: got no type, wanted {WANTED}; annotate it")
        if hints[name] is threading.Event:
            if name != "cancelled":
                raise ValueError(
                    f"{where}: got an Event, which is only allowed as `cancelled`; rename it"
                )
        if hints[name] is threading.Event or (name == "started" and hints[name] is float):
            hidden.append(name)
            continue
        schema = argument_types.schema_of(hints[name], where)
        if name in described:
            schema["description"] = described[name]
        required = parameter.default is parameter.empty
        if not required:
            schema["default"] = _default(schema, parameter.default, where)
        parameters[name] = Parameter(schema, required)
    return parameters, hidden


def _default(schema: Schema, value: Any, where: str) -> Any:  # noqa: ANN401
    """The JSON form of a default."""
    try:
        default = json.loads(json.dumps(value, default=plain))
        argument_types.read(schema, default, "its default")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}; correct it") from None
    return default


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text of a docstring before its sections, and the descriptions of the arguments."""
    text = inspect.getdoc(function) or ""
    head, *rest = re.split(r"^(Args|Returns|Raises|Yields|Example|Examples):\s*$", text, flags=re.M)
    described = {}
    if "Args" in rest:
        body = inspect.cleandoc(rest[rest.index("Args") + 1])
        for name, words in re.findall(r"^(\w+)[^:\n]*:\s*((?:.|\n\s+)*)", body, flags=re.M):
            described[name] = " ".join(words.split())
    return " ".join(head.split()), described
