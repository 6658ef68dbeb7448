"""The tools of the demo: results and errors."""

import datetime
import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from interaction.background.demo_tools import Row, demo_tools, make_database
from interaction.background.tool import Tool
from interaction.background.toolbox import Toolbox
from tests.background.fakes import wait_for

ROWS = [Row("milk", 4, "kitchen"), Row("Lamp", 20, "hallway")]


def run(tools: list[Tool], name: str, **arguments: object) -> object:
    call = Toolbox(tools).call(name, arguments)
    end = time.monotonic() + 5
    while not call.done():
        assert time.monotonic() < end
        time.sleep(0.002)
    got = json.loads(call.result())
    return got["result"] if "result" in got else got["error"]


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("7 * 8", 56),
        ("(1 + 2) * -3", -9),
        ("10 / 4", 2.5),
        ("6 / 2", 3),
        ("0.1 + 0.2", 0.3),
        ("10 / 3", 3.3333),
        ("1 / 3000", 0.0003333),
        ("7 // 2 + 7 % 4", 6),
        ("2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("1 / 0", "divides by zero"),
        ("9 ** 9 ** 9", "exponents up to 64"),
        ("99 ** 64", "beyond 1e+15"),
        ("2 ** 0.5", "exponents"),
        ("0.1 ** 64 * 10 ** 15", 1e-49),
        ("((0.1 ** 64) ** 64) ** 64", "too many digits"),
        ("(" * 5 + "1e-300" + " ** 64)" * 5, "too many digits"),
        ("1e-300 * " * 20 + "1", "too many digits"),
        ("1e999", "beyond"),
        ("9" * 190, "beyond"),
        ("1" * 300, "300 characters"),
        ("__import__('os')", "no arithmetic"),
        ("True + 1", "no arithmetic"),
        ("'a' * 3", "no arithmetic"),
        ("1 +", "no arithmetic"),
        ("(" * 150, "no arithmetic"),
        ("-" * 190 + "1", 1),
        ("0 ** -1", "divides by zero"),
    ],
)
def test_calculate(expression: str, result: object) -> None:
    got = run(demo_tools([]), "calculate", expression=expression)
    assert result in got if isinstance(result, str) else got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("amount", "unit", "to", "result"),
    [
        (3, "weeks", "days", 21),
        (1, "Mile", "feet", 5280),
        (2, "kilometers", "meters", 2000),
        (1, "pound", "ounces", 16),
        (12, "inches", "foot", 1),
        (5, "feet", "yards", 1.6667),
        (0.5, "hours", "minutes", 30),
        (1, "gallon", "cups", 16),
        (1, "mile", "kilometers", 1.6093),
        (1, "mile", "hours", "mile measure length, hours measure time"),
        (1, "parsec", "miles", "no 'parsec'"),
        (1e300, "miles", "feet", "beyond"),
    ],
)
def test_convert(amount: float, unit: str, to: str, result: object) -> None:
    got = run(demo_tools([]), "convert", amount=amount, unit=unit, to=to)
    assert result in got if isinstance(result, str) else got == result


@pytest.mark.parametrize(
    ("hour", "minute", "said"), [(16, 5, "4:05"), (0, 0, "12:00"), (12, 30, "12:30")]
)
def test_clock(hour: int, minute: int, said: str) -> None:
    tools = demo_tools([], now=lambda: datetime.datetime(2026, 1, 2, hour, minute))
    assert run(tools, "clock") == said


def test_timer_takes_its_time_and_stops_when_cancelled() -> None:
    slept = []
    tools = demo_tools([], sleep=lambda seconds, _: slept.append(seconds))
    assert run(tools, "timer", amount=90, unit="seconds") == "over"
    assert run(tools, "timer", amount=2, unit="minutes", item=" tea") == "over"
    assert slept == pytest.approx([90, 120], abs=0.2)  # counted from the call, which takes a moment
    assert "wanted 1 to" in run(demo_tools([]), "timer", amount=0, unit="seconds")
    stopped = threading.Event()

    def sleep(seconds: float, cancelled: threading.Event) -> None:
        assert cancelled.wait(5)
        stopped.set()

    call = Toolbox(demo_tools([], sleep=sleep)).call("timer", {"amount": 1, "unit": "minutes"})
    assert not call.done()
    call.cancel()
    assert stopped.wait(5)


@pytest.mark.parametrize(("ago", "left"), [(30, 870), (900, 0), (5_000, 0)])
def test_a_timer_runs_from_its_first_request(ago: float, left: float) -> None:
    slept = []
    tools = demo_tools([], sleep=lambda seconds, _: slept.append(seconds))
    text = '{"tool": "timer", "amount": 15, "unit": "minutes"}'
    call = Toolbox(tools).start(text, time.monotonic() - ago)
    wait_for(call.done)
    assert call.result() == '{"result": "over"}' and slept == [pytest.approx(left, abs=0.2)]
    assert "started" not in json.dumps(Toolbox(tools).schemas())


@pytest.mark.parametrize("stored", [False, True])
def test_lookup(tmp_path: Path, stored: bool) -> None:
    path = tmp_path / "things.db"
    if stored:
        make_database(ROWS, path).close()
    tools = demo_tools(path if stored else ROWS)
    assert run(tools, "lookup", item="milk", field="price") == 4
    assert run(tools, "lookup", item=" LAMP ", field="place") == "hallway"
    assert "no 'tea'" in run(tools, "lookup", item="tea", field="price")
    assert "no \"' or" in run(tools, "lookup", item="' or 1=1 --", field="price")
    assert "wanted ('price', 'place')" in run(tools, "lookup", item="milk", field="name")


def test_tables_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows: "):
        make_database([ROWS[0], ROWS[0]])
    make_database(ROWS, tmp_path / "a.db").close()
    with pytest.raises(ValueError, match="already exists"):
        make_database(ROWS, tmp_path / "a.db")
    assert "OperationalError" in run(
        demo_tools(tmp_path / "none.db"), "lookup", item="milk", field="price"
    )
    assert not (tmp_path / "none.db").exists()
    with sqlite3.connect(tmp_path / "a.db") as database:
        assert database.execute("SELECT count(*) FROM things").fetchone() == (2,)
