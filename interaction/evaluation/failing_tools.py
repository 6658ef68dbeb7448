"""What the pair tells its user about tools that fail, are late, or give something unusable.

Requests have the demo's own forms. What the live model is given has to be the sentence of a
failure; anything else is an invented answer. Results that are as they should be, in between, show
that the pair says more than this sentence.
"""

import copy
import dataclasses
import datetime
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from interaction.background import trained
from interaction.background.agent import FAILED, MicroTurn
from interaction.background.delegations import GIVEN, SORRY, Delegations
from interaction.background.demo_tools import demo_tools
from interaction.background.reasoner_agent import Reasoner, ReasonerAgent
from interaction.background.tool import Tool
from interaction.background.toolbox import Toolbox
from interaction.data.domain import tool_requests
from interaction.data.domain.tool_requests import ToolRequest
from interaction.types import Special

LIMIT_S = 0.2  # s, time limit of a tool
LATE_S = 0.5  # s that a late tool takes
WAIT_S = 60.0  # s, longest wait for the words of a delegation
CORRECTED_SHARE = 0.3  # share of the requests that are corrected, where they can be
BEFORE = 5  # micro-turns before a request
SLOTS = 4  # most tokens that arrive in a micro-turn
ERRORS = (
    ValueError("item: there is no 'butter'"),
    ConnectionError("no network"),
    TimeoutError(),
    KeyError("price"),
    ZeroDivisionError("division by zero"),
    SystemExit(1),
)
# Results that no tool of the demo gives, among them some that look like those of other tools.
UNUSABLE = (
    None,
    True,
    False,
    5.25,
    7.0,
    float("nan"),
    float("inf"),
    -3,
    1_000,
    10**12,
    10**600,
    "",
    "12",
    "twenty",
    "nowhere",
    "in the garage",
    "0:30",
    "25:99",
    "7:5",
    "done",
    "the weather in paris is sunny and twenty degrees",
    "it is nine dollars",
    "sorry that did not work",
    '{"error": "no"}',
    "word " * 1_000,
    [9],
    {"price": 9},
    b"nine",
    object(),
)
NOW = datetime.datetime(2000, 1, 1, 16, 49)
RAISES, LATE, GIVES = "raises", "is late", "gives"


class Told(NamedTuple):
    """What the user was told about one request."""

    request: str
    fault: str  # what the tool did, "" if its result was right
    wanted: str  # right words for the result, or the sentence of a failure
    said: str  # words that the live model was given
    reason: str  # of the failure, for the app


@dataclasses.dataclass
class _Fault:
    """What the tools do next."""

    kind: str = ""
    value: Any = None  # the error, or the result

    def __str__(self) -> str:
        return self.kind if self.kind in ("", LATE) else f"{self.kind} {self.value!r}"[:100]


def tell(reasoner: Reasoner, count: int, seed: int, usable: int = 0) -> Iterator[Told]:
    """Lets the pair work on requests whose tools fail.

    Args:
      reasoner: The released background model.
      count: Requests whose tool fails.
      seed: Decides requests and faults.
      usable: Further requests, whose tool gives the right result.

    Yields:
      What the user was told, in an order drawn at random.
    """
    rng = np.random.default_rng(seed)
    fault, prices = _Fault(), tool_requests.draw_prices(rng)
    tools = [_faulty(one, fault, prices) for one in demo_tools([], lambda: NOW)]
    agent = ReasonerAgent(reasoner, Toolbox(tools))
    core = Delegations(agent, reasoner.tokenizer, says=trained.says)
    try:
        for fails in rng.permutation(np.arange(count + usable) < count):
            request = tool_requests.draw_tool_request(rng)
            slots = tool_requests.draw_slots(request, rng, request.name != "clock")
            fault.kind, fault.value = _draw(rng) if fails else ("", None)
            wanted = SORRY
            words, fixed = [request.delegated.format(**slots)], {}
            if request.fix and rng.random() < CORRECTED_SHARE:
                fixed = tool_requests.draw_slots(request, rng, True)
                fixed = {name: fixed[name] for name in request.changes}
                words.append(request.fix.format(**(slots | fixed)))
            if not fails:
                wanted = _right(request, slots | fixed, prices)
            said, reason = _ask(core, reasoner, words)
            yield Told(" / ".join(words), str(fault), wanted, said, reason)
    finally:
        core.close()


def summarise(told: list[Told]) -> dict[str, Any]:
    """Counts of what was told.

    Returns:
      For JSON: "asked", requests whose tool failed; "invented", those that were told anything but a
      failure; "usable" and "right", requests with a right result, and those told exactly;
      "invented_of_usable", those told something else than the result or a failure; "mistakes", all
      that was told wrongly.
    """
    failed = [one for one in told if one.fault]
    usable = [one for one in told if not one.fault]
    invented = [one for one in failed if one.said != SORRY]
    wrong = [one for one in usable if one.said not in (one.wanted, SORRY)]
    return {
        "asked": len(failed),
        "invented": len(invented),
        "usable": len(usable),
        "right": sum(one.said == one.wanted for one in usable),
        "invented_of_usable": len(wrong),
        "mistakes": [one._asdict() for one in (*invented, *wrong)],
    }


def _draw(rng: np.random.Generator) -> tuple[str, Any]:
    """Draws a fault: a third of each kind."""
    kind = (RAISES, LATE, GIVES)[int(rng.integers(3))]
    values = {RAISES: ERRORS, LATE: (None,), GIVES: UNUSABLE}[kind]
    return kind, values[int(rng.integers(len(values)))]


def _faulty(tool: Tool, fault: _Fault, prices: tool_requests.Prices) -> Tool:
    """The same tool with the fault of the moment; without one, its result comes at once."""
    bad, before = copy.copy(tool), tool.function

    def function(**arguments: Any) -> Any:  # noqa: ANN401
        kind, value = fault.kind, fault.value
        if kind == RAISES:
            raise value
        if kind == GIVES:
            return value
        if kind == LATE:
            time.sleep(LATE_S)
        if tool.name == "lookup":
            return prices[arguments["item"].strip()][arguments["field"] == "place"]
        return "over" if tool.name == "timer" else before(**arguments)

    bad.function, bad.timeout_s = function, LIMIT_S
    return bad


def _right(request: ToolRequest, slots: dict[str, str], prices: tool_requests.Prices) -> str:
    """The right words for a request."""
    time_of_day = f"{NOW:%I:%M}".lstrip("0")
    result = tool_requests.true_result(request.call(slots), prices, time_of_day)
    return request.answer(slots, result)


def _ask(core: Delegations, reasoner: Reasoner, words: list[str]) -> tuple[str, str]:
    """Delegates a request, corrects it, and waits for the words that the live model is given."""
    audio = np.zeros(reasoner.config.audio.turn_samples, np.float32)
    transcript = np.full(reasoner.config.audio_positions, Special.NONE, np.int32)
    for _ in range(BEFORE):
        core.observe(MicroTurn(audio, audio, transcript, Special.SILENT))
    core.notes()
    opening = Special.DELEGATE
    for part in words:
        for token in (opening, *reasoner.tokenizer.encode(part), Special.END_DELEGATE):
            core.read(token)
        opening = Special.UPDATE
    said: list[int] = []
    reasons: list[str] = []
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        core.collect()
        arrived = core.take(SLOTS)
        said += [] if arrived is None else [one for one in arrived if one >= Special.COUNT]
        notes = core.notes()
        reasons += [note.text for note in notes if note.kind == FAILED]
        if any(note.kind == GIVEN for note in notes):
            return reasoner.tokenizer.decode(said), "; ".join(reasons)
        time.sleep(0.002)
    return "", f"nothing after {WAIT_S:g} s"
