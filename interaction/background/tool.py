"""`tool`: makes a typed Python function a tool that models can call.

The JSON schema of the arguments comes from the type hints, the descriptions from the docstring in
Google style. A parameter `cancelled: threading.Event` is hidden from models; it is set when the
result of the call is no longer needed.
"""

import inspect
import math
import re
import threading
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, overload

TIMEOUT_S = 10.0  # default time limit of a call, s
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_WANTED = "int, float, str, bool, a Literal of these, or any of them | None"


class Parameter(NamedTuple):
    """One argument of a tool."""

    schema: dict[str, Any]  # JSON schema
    kinds: tuple[type, ...]  # allowed types of a value
    choices: tuple[Any, ...] | None  # allowed values; None allows all values of these types
    required: bool

    def check(self, value: Any) -> Any:  # noqa: ANN401
        """Checks a parsed JSON value; converts 5.0 to 5 and 5 to 5.0 where the type needs it.

        Args:
          value: The value.

        Returns:
          The value as the function takes it.

        Raises:
          ValueError: It has another type, is not finite, or is none of the choices.
        """
        kind = type(value)
        if kind is int and int not in self.kinds and float in self.kinds:
            value = _as_float(value)
        if kind is float and float not in self.kinds and int in self.kinds and value.is_integer():
            value = int(value)
        finite = not isinstance(value, float) or math.isfinite(value)
        allowed = type(value) in self.kinds and finite
        if self.choices is not None:
            allowed &= any(value == one and type(value) is type(one) for one in self.choices)
        if not allowed:
            wanted = self.choices or " or ".join(_NAMES[one] for one in self.kinds)
            raise ValueError(f"got {_brief(value)}, wanted {wanted}")
        return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # refused as not finite


def _brief(value: Any) -> str:  # noqa: ANN401
    return repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"


class Tool:
    """A function that a model can call; calling the tool calls the function."""

    def __init__(self, function: Callable[..., Any], timeout_s: float | None = TIMEOUT_S) -> None:
        """Reads the function's signature.

        Args:
          function: A function with type hints and a docstring. Each call runs on its own thread.
            C code that holds the interpreter's lock would stop the conversation and needs another
            process.
          timeout_s: Time limit of a call, s; None means no limit.

        Raises:
          ValueError: It is not a plain function, has no docstring, or a parameter has no type hint
            or one without a schema here.
        """
        self.function = function
        self.name = getattr(function, "__name__", "")
        if not callable(function) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"tool: got {function!r}, wanted a function with a name of letters, digits and "
                "underscores; define one with def"
            )
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise ValueError(f"tool {self.name}: got a coroutine or generator; return the value")
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ValueError(
                f"tool {self.name}: got timeout_s={timeout_s}, wanted a positive number of seconds "
                "or None; pass one"
            )
        self.timeout_s = timeout_s
        self.description, described = _docstring(function)
        if not self.description:
            raise ValueError(f"tool {self.name}: got no docstring; describe in one what it does")
        self.parameters, self.takes_cancelled = _parameters(self.name, function, described)
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
        """Calls the function."""
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
        checked = {}
        for name, value in arguments.items():
            try:
                checked[name] = known[name].check(value)
            except ValueError as error:
                raise ValueError(f"{self.name}.{name}: {error}") from None
        return checked


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
) -> tuple[dict[str, Parameter], bool]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ValueError(
            f"tool {tool_name}: got type hints that cannot be read ({error})"
        ) from None
    parameters, takes_cancelled = {}, False
    for name, parameter in inspect.signature(function).parameters.items():
        where = f"tool {tool_name}.{name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(
                f"{where}: got a {parameter.kind.description} parameter; name each argument"
            )
        if name == "tool":
            raise ValueError(f"{where}: a call uses this name for the tool; choose another one")
        if name not in hints:
            raise ValueError(f"{where}: got no type, wanted {_WANTED}; annotate it")
        if hints[name] is threading.Event:
            if name != "cancelled":
                raise ValueError(
                    f"{where}: got an Event, which is only allowed as `cancelled`; rename it"
                )
            takes_cancelled = True
            continue
        schema, kinds, choices = _schema(where, hints[name])
        if name in described:
            schema["description"] = described[name]
        required = parameter.default is parameter.empty
        parameters[name] = one = Parameter(schema, kinds, choices, required)
        if not required:
            try:
                schema["default"] = one.check(parameter.default)
            except ValueError as error:
                raise ValueError(f"{where}: its default: {error}; correct it") from None
    return parameters, takes_cancelled


def _schema(where: str, hint: Any) -> tuple[dict[str, Any], tuple[type, ...], tuple | None]:  # noqa: ANN401
    """JSON schema, allowed types and choices of a type hint."""
    if hint in _NAMES:
        return {"type": _NAMES[hint]}, (hint,), None
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        kinds = tuple(dict.fromkeys(type(one) for one in choices))
        if all(kind in _NAMES for kind in kinds):
            names = [_NAMES[kind] for kind in kinds]
            schema = {"type": names[0] if len(names) == 1 else names, "enum": list(choices)}
            return schema, kinds, choices
    if get_origin(hint) in (Union, types.UnionType):
        rest = [one for one in get_args(hint) if one is not type(None)]
        if len(rest) == 1 and len(get_args(hint)) == 2:
            schema, kinds, choices = _schema(where, rest[0])
            given = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            schema["type"] = [*given, "null"]
            if choices is not None:
                choices = (*choices, None)
                schema["enum"] = list(choices)
            return schema, (*kinds, type(None)), choices
    raise ValueError(f"{where}: got {hint}, wanted {_WANTED}; change the parameter")


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
