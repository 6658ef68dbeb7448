"""`Toolbox`: runs each tool call on a thread, so that no caller waits.

A thread of Python cannot be ended from outside. A call that hangs is over at its time limit all the
same: it has an error as its result and no longer counts among the calls at once. Its thread is left
alone, and a tool with too many such threads is refused until one of them ends.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
import threading
import time
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from interaction.background.result_forms import plain
from interaction.background.tool import Tool

_log = logging.getLogger(__name__)
LIMIT = 2_000  # most characters of a result
CONCURRENT = 16  # most calls at once, without those that only wait
WAITING = 128  # most calls at once that only wait, such as timers
HUNG = 32  # most threads of one tool that go on although their call is over
_CALL_LIMIT = 20_000  # most characters of a call
_ERROR_LIMIT = 200  # most characters of an error
_DEPTH = 20  # most levels of a nested result


class ToolCall:
    """One call, running or done; its function is never started a second time."""

    def __init__(self, name: str, timeout_s: float | None, waits: bool = False) -> None:
        """Makes a call; `Toolbox.call` starts it.

        Args:
          name: Name of the tool.
          timeout_s: Time limit, s; None means no limit.
          waits: Whether it only waits, see `Tool`.
        """
        self.name, self.waits = name, waits
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._wake: Callable[[], object] | None = None  # ends an async call
        self._started = time.monotonic()
        self._seconds = 0.0
        self._result: str | None = None

    def done(self) -> bool:
        """Whether there is a result; after the time limit the result is an error."""
        late = self._timeout_s is not None and self._elapsed() >= self._timeout_s
        if self._result is None and late:
            self._finish(error_json(f"{self.name}: no result after {self._timeout_s:g} s"))
            self._stop()
        return self._result is not None

    def result(self) -> str:
        """JSON of {"result": value} or {"error": text}, at most `LIMIT` characters.

        A longer result is cut: {"result": its beginning as text, "cut": true}.

        Raises:
          ValueError: The call is not done.
        """
        if self._result is None:
            raise ValueError(f"call of {self.name}: got no result yet; check done() first")
        return self._result

    def cancel(self) -> None:
        """Ends the call with an error, and tells its function to stop."""
        self._finish(error_json(f"{self.name}: cancelled"))
        self._stop()

    @property
    def seconds(self) -> float:
        """Duration of the call so far, s."""
        return self._elapsed() if self._result is None else self._seconds

    def _run(self, tool: Tool, arguments: dict[str, Any]) -> None:
        """Runs the function, on the thread of the call."""
        try:
            if tool.is_async:
                value = asyncio.run(self._await(tool, arguments))
            else:
                value = tool.function(**arguments)
            result = result_json(value)
        except BaseException as error:  # even SystemExit ends only the call
            _log.info("tool %s failed", tool.name, exc_info=True)
            result = error_json(_describe(error))
        if not self.done():  # in time
            self._finish(result)

    async def _await(self, tool: Tool, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        loop = asyncio.get_running_loop()
        task = loop.create_task(tool.function(**arguments))
        self._wake = functools.partial(loop.call_soon_threadsafe, task.cancel)
        if self._cancelled.is_set():  # before there was anything to wake
            self._stop()
        if self._timeout_s is not None:
            loop.call_later(self._timeout_s, self.done)
        return await task

    def _stop(self) -> None:
        """Tells the function to stop, an async one once: it may clean up afterwards."""
        self._cancelled.set()
        with self._lock:
            wake, self._wake = self._wake, None
        if wake is not None:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                wake()

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _finish(self, result: str) -> None:
        """Sets the result, unless there is one."""
        with self._lock:
            if self._result is None:
                self._seconds = self._elapsed()
                self._result = result


class Toolbox:
    """A set of tools, and the threads that they run on."""

    def __init__(self, tools: Iterable[Tool], concurrent: int = CONCURRENT) -> None:
        """Makes a toolbox.

        Args:
          tools: Tools with different names.
          concurrent: Most calls that run at once; further calls fail at once. Calls that only wait
            (`Tool.waits`) do not count, and have a limit of their own, `WAITING`.

        Raises:
          ValueError: Two tools have one name, one is not a `Tool`, or `concurrent` is below 1.
        """
        if not isinstance(tools, Iterable):
            raise ValueError(
                f"tools: got {_called(tools)}, wanted a list of tools; pass [tool, ...]"
            )
        named: dict[str, Tool] = {}
        for one in tools:
            if not isinstance(one, Tool):
                raise ValueError(f"tools: got {one!r}, wanted a Tool; decorate it with @tool")
            if one.name in named:
                raise ValueError(f"tools: got {one.name!r} twice; rename one")
            named[one.name] = one
        if concurrent < 1:
            raise ValueError(f"concurrent: got {concurrent}, wanted at least 1; allow a call")
        self.tools: Mapping[str, Tool] = types.MappingProxyType(named)
        self._concurrent = concurrent
        self._threads_lock = threading.Lock()
        self._threads: set[ToolCall] = set()  # calls whose thread goes on, over or not

    def schemas(self) -> list[dict[str, Any]]:
        """Schemas of the tools, in the form of `tools` in OpenAI's chat completions."""
        return [one.schema for one in self.tools.values()]

    def start(self, call_text: str, started: float | None = None) -> ToolCall:
        """Starts a call; never waits, never raises.

        Args:
          call_text: JSON of the form {"tool": name, **arguments}.
          started: When it was first asked for, s of `time.monotonic`; None means now.

        Returns:
          The call; it is done, with an error, if the text is not a valid call.
        """
        try:
            if len(call_text) > _CALL_LIMIT:
                raise ValueError(f"got {len(call_text)} characters")
            call = json.loads(call_text)
            name = call.pop("tool")
            if not isinstance(name, str):
                raise ValueError("its tool is no name")
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            reason = "wanted JSON of the form {'tool': name, 'argument': value}"
            return _failed("call", f"got no call ({error}), {reason}")
        return self.call(name, call, started)

    def call(
        self, name: str, arguments: Mapping[str, Any], started: float | None = None
    ) -> ToolCall:
        """Starts a call with parsed arguments, see `start`."""
        if name not in self.tools:
            return _failed("call", f"no tool {name[:40]!r}, wanted one of {list(self.tools)}")
        tool = self.tools[name]
        try:
            checked = tool.check(arguments)
        except ValueError as error:
            return _failed(name, str(error))
        call = ToolCall(name, tool.timeout_s, tool.waits)
        with self._threads_lock:
            refusal = self._refusal(call)
            if refusal is not None:
                return _failed(name, refusal)
            self._threads.add(call)
        if tool.takes_cancelled:
            checked["cancelled"] = call._cancelled
        if tool.takes_started:
            checked["started"] = time.monotonic() if started is None else started
        thread = threading.Thread(
            target=self._run, args=(call, tool, checked), name=f"tool {name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread for it
            self._forget(call)
            call._finish(error_json(f"{name}: {error}"))
        return call

    def _refusal(self, call: ToolCall) -> str | None:
        """Why a call cannot start now; needs the lock."""
        over = {one for one in self._threads if one.done()}  # `done` ends what is late
        if sum(one.name == call.name for one in over) >= HUNG:
            return f"{call.name}: {HUNG} calls hang; it works again when one of them ends"
        running = sum(one.waits == call.waits for one in self._threads - over)
        if running >= (WAITING if call.waits else self._concurrent):
            return f"{call.name}: too many calls are running"
        return None

    def _run(self, call: ToolCall, tool: Tool, arguments: dict[str, Any]) -> None:
        try:
            call._run(tool, arguments)
        finally:
            self._forget(call)

    def _forget(self, call: ToolCall) -> None:
        with self._threads_lock:
            self._threads.remove(call)


def check_toolbox(toolbox: object) -> Toolbox:
    """Returns the toolbox that an agent was given.

    Raises:
      ValueError: It is something else, such as a tool or a list of tools.
    """
    if not isinstance(toolbox, Toolbox):
        raise ValueError(
            f"toolbox: got {_called(toolbox)}, wanted a Toolbox; pass Toolbox([tool, ...])"
        )
    return toolbox


def _called(value: object) -> str:
    return f"the tool {value.name}" if isinstance(value, Tool) else f"a {type(value).__name__}"


def _failed(name: str, reason: str) -> ToolCall:
    call = ToolCall(name, None)
    call._finish(error_json(reason))
    return call


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text[:_ERROR_LIMIT]}" if text else type(error).__name__


def error_json(text: str) -> str:
    """JSON of {"error": text}; the text is cut to 200 characters."""
    return json.dumps({"error": clean_text(text[:_ERROR_LIMIT])}, ensure_ascii=False)


def result_json(value: Any, limit: int = LIMIT) -> str:  # noqa: ANN401
    """JSON of {"result": value}, cut to `limit` characters without reading all of a large value.

    Args:
      value: A value that has a form in JSON, see `result_forms`.
      limit: Most characters.

    Raises:
      ValueError: The value, or a part of it, has no form in JSON.
    """
    short, left = _shorten(value, limit, 0)
    text = json.dumps({"result": short}, ensure_ascii=False)
    if left > 0 and len(text) <= limit:
        return text
    text = short if isinstance(short, str) else json.dumps(short, ensure_ascii=False)
    text = text[:limit]
    while len(cut := json.dumps({"result": text, "cut": True}, ensure_ascii=False)) > limit:
        text = text[: len(text) * limit // (len(cut) + 1)]
    return cut


def clean_text(text: str) -> str:
    """Replaces half surrogate pairs, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shorten(value: Any, room: int, depth: int) -> tuple[Any, int]:  # noqa: ANN401
    """The beginning of a value, of about `room` characters, and the room that is left.

    The room is not positive if the value was cut.
    """
    value = _plain(value, room)
    if value is None or isinstance(value, bool):
        return value, room - 4
    if isinstance(value, int):
        if value.bit_length() > 3 * room + 64:
            raise ValueError("result: got an integer of too many digits")
        return value, room - len(str(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"result: got {value}, wanted a finite number")
        return value, room - len(str(value))
    if isinstance(value, str):
        return clean_text(value[: max(room, 0)]), room - len(value)
    if depth == _DEPTH:
        raise ValueError(f"result: got more than {_DEPTH} levels")
    if isinstance(value, list | tuple):
        items = []
        for item in value:
            if room <= 0:
                break
            short, room = _shorten(item, room - 2, depth + 1)
            items.append(short)
        return items, room
    fields = {}
    for key, item in value.items():
        if room <= 0:
            break
        name = _plain(key, room)
        if not isinstance(name, str):
            raise ValueError(f"result: got a key of type {type(key).__name__}, wanted a text")
        short, room = _shorten(item, room - len(name) - 6, depth + 1)
        fields[clean_text(name[:LIMIT])] = short
    return fields, room


def _plain(value: Any, room: int) -> Any:  # noqa: ANN401
    try:
        return plain(value, room)
    except ValueError as error:
        raise ValueError(f"result: {error}") from None
