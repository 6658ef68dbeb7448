"""The five tools of the demo: arithmetic, time of day, timers, a table of things, and units.

Models read the docstrings and the error messages of the tools.
"""

import ast
import datetime
import operator
import pathlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from fractions import Fraction
from typing import Literal, NamedTuple

from interaction.background.tool import Tool, tool
from interaction.data.domain.tool_requests import TIMER_UNITS

Number = int | float
LARGEST = 10**15  # largest number of a calculation, so that a power cannot take for ever
LONGEST_S = 86_400  # longest timer, s
_EXPONENT = 64  # largest exponent
_BITS = 4_096  # most bits of a numerator or denominator; their product blocks other threads


class Row(NamedTuple):
    """One thing of the table."""

    item: str
    price: int  # dollars
    place: str  # such as "kitchen"; the demo pair says "it is in the kitchen"


def demo_tools(
    rows: Iterable[Row] | pathlib.Path,
    now: Callable[[], datetime.datetime] = datetime.datetime.now,
    sleep: Callable[[float, threading.Event], object] | None = None,
) -> list[Tool]:
    """The tools of one conversation.

    Args:
      rows: The table of `lookup`: its rows, or an SQLite file of `make_database`.
      now: Returns the time that `clock` tells.
      sleep: Waits so many seconds, or until the event is set; None uses the real clock.

    Returns:
      calculate, clock, timer, lookup, convert.
    """
    wait = sleep or (lambda seconds, cancelled: cancelled.wait(seconds))

    @tool
    def clock() -> str:
        """Tells the time of day, as hours of twelve and minutes."""
        moment = now()
        return f"{moment.hour % 12 or 12}:{moment.minute:02d}"

    @tool(timeout_s=None)
    def timer(
        amount: int,
        unit: Literal["seconds", "minutes"],
        cancelled: threading.Event,
        started: float,
        item: str = "",
    ) -> str:
        """Waits until a time has passed.

        Args:
          amount: How long.
          unit: Unit of the amount.
          cancelled: Ends the timer early.
          started: When it was first asked for, s; a corrected timer runs from there.
          item: What the timer is for.
        """
        seconds = amount * TIMER_UNITS[unit]
        if not 0 < seconds <= LONGEST_S:
            raise ValueError(f"amount: got {amount} {unit}, wanted 1 to {LONGEST_S} seconds")
        wait(max(0.0, started + seconds - time.monotonic()), cancelled)
        return "over"

    return [calculate, clock, timer, _lookup(rows), convert]


def make_database(rows: Iterable[Row], path: str | pathlib.Path = ":memory:") -> sqlite3.Connection:
    """Writes rows into a new SQLite database.

    Args:
      rows: Rows with different items.
      path: The file; the default keeps the database in memory.

    Returns:
      The open database, for use by one thread at a time.

    Raises:
      ValueError: The file has such a table already, or an item occurs twice.
    """
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        with database:
            database.execute(
                "CREATE TABLE things (item TEXT PRIMARY KEY, price INTEGER, place TEXT)"
            )
            lines = [(row.item.lower(), row.price, row.place) for row in rows]
            database.executemany("INSERT INTO things VALUES (?, ?, ?)", lines)
    except sqlite3.Error as error:
        database.close()
        raise ValueError(
            f"rows: {path} cannot hold this table ({error}), wanted a new file and different "
            "items; correct them"
        ) from error
    return database


def _lookup(rows: Iterable[Row] | pathlib.Path) -> Tool:
    lock = threading.Lock()
    memory = None if isinstance(rows, pathlib.Path) else make_database(rows)
    if memory is not None:
        memory.execute("PRAGMA query_only = ON")

    def find(item: str) -> tuple[int, str] | None:
        query = "SELECT price, place FROM things WHERE item = ?", (item.strip().lower(),)
        if memory is not None:
            with lock:
                return memory.execute(*query).fetchone()
        uri = f"{pathlib.Path(str(rows)).resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            return database.execute(*query).fetchone()

    @tool
    def lookup(item: str, field: Literal["price", "place"]) -> int | str:
        """Finds what a thing costs, in dollars, or where it is.

        Args:
          item: Name of the thing.
          field: What to find.
        """
        found = find(item)
        if found is None:
            raise ValueError(f"item: there is no {item.strip()[:40]!r}")
        return found[field == "place"]

    return lookup


_BINARY: dict[type, Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@tool
def calculate(expression: str) -> Number:
    """Calculates exactly with + - * / // % ** and parentheses.

    Args:
      expression: What to calculate, such as "7 * (8 - 1)".
    """
    if len(expression) > 200:
        raise ValueError(f"expression: got {len(expression)} characters, wanted at most 200")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _number(_evaluate(tree.body))
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("expression: got no arithmetic") from None
    except ZeroDivisionError:
        raise ValueError("expression: divides by zero") from None


def _evaluate(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            result = Fraction(str(value)) if abs(value) <= LARGEST else _too_large()
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign):
            result = _evaluate(node.operand)
            result = -result if isinstance(sign, ast.USub) else result
        case ast.BinOp(op=ast.Pow()):
            result = _power(_evaluate(node.left), _evaluate(node.right))
        case ast.BinOp(op=op) if type(op) in _BINARY:
            result = Fraction(_BINARY[type(op)](_evaluate(node.left), _evaluate(node.right)))
        case _:
            raise ValueError("expression: got something that is no arithmetic")
    return result if abs(result) <= LARGEST and _bits(result) <= _BITS else _too_large()


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > _EXPONENT:
        raise ValueError(f"expression: wanted whole exponents up to {_EXPONENT}")
    if _bits(base) * abs(exponent) > _BITS:
        _too_large()
    return Fraction(base ** int(exponent))


def _too_large() -> Fraction:
    raise ValueError(f"expression: got a number beyond {LARGEST:.0e}, or of too many digits")


def _number(value: Fraction) -> Number:
    """An int if it is whole, else a float of four decimals, or of four digits below 1."""
    if value.denominator == 1:
        return int(value)
    return float(f"{float(value):.4g}") if abs(value) < 1 else round(float(value), 4)


def _units() -> dict[str, tuple[str, Fraction]]:
    """Singular or plural of a unit -> its kind, and its size in the smallest unit of the kind."""
    table = {
        "time": "second:1 minute:60 hour:3600 day:86400 week:604800",
        "length": "millimeter:1 centimeter:10 meter:1000 kilometer:1000000 inch/inches:25.4 "
        "foot/feet:304.8 yard:914.4 mile:1609344",
        "weight": "gram:1 kilogram:1000 ounce:28.349523125 pound:453.59237 ton:1000000",
        "volume": "milliliter:1 liter:1000 teaspoon:4.92892159375 tablespoon:14.78676478125 "
        "cup:236.5882365 pint:473.176473 quart:946.352946 gallon:3785.411784",
    }
    units = {}
    for kind, line in table.items():
        for entry in line.split():
            names, size = entry.split(":")
            one, many = names.split("/") if "/" in names else (names, f"{names}s")
            units[one] = units[many] = kind, Fraction(size)
    return units


UNITS = _units()


@tool
def convert(amount: float, unit: str, to: str) -> Number:
    """Converts between units of time, length, weight or volume.

    Args:
      amount: How many.
      unit: Unit of the amount, such as "weeks".
      to: Unit of the result, such as "days".
    """
    known = []
    for name in (unit, to):
        if name.strip().lower() not in UNITS:
            raise ValueError(f"unit: there is no {name.strip()[:40]!r}")
        known.append(UNITS[name.strip().lower()])
    (kind, size), (other, into) = known
    if kind != other:
        raise ValueError(f"unit: {unit} measure {kind}, {to} measure {other}")
    if abs(amount) > LARGEST:
        raise ValueError(f"amount: got a number beyond {LARGEST:.0e}")
    return _number(Fraction(str(amount)) * size / into)
