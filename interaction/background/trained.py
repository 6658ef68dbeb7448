"""What the released pair was trained on: calls, results, corrections, and the words for the user.

The models turn anything else into words too, but wrong ones. So code decides: a tool that the
background model cannot call is refused, a result or an answer without a form here fails.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from interaction.data import domain
from interaction.data.domain import tool_requests
from interaction.data.domain.tool_requests import (
    CONVERSIONS,
    UNITS,
    VALUE,
    Call,
    ToolRequest,
    number_words,
)
from interaction.data.domain.words import ROOMS

_REQUESTS = {request.name: request for request in tool_requests.TOOL_REQUESTS}
_TIME = re.compile(r"([1-9]|1[0-2]):[0-5][0-9]")


class Trained(NamedTuple):
    """What a background model was trained on."""

    calls: tuple[Call, ...]  # an example of each form of a call
    # The right answers for a call and its result; () if the result has no form that it knows.
    answers: Callable[[Call, Any], tuple[str, ...]]
    # The corrections of a request in words that it knows; None if one cannot be of this request.
    corrections: Callable[[str, Sequence[str]], Sequence[str] | None]


def _answers(call: Call, result: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The right answer for a call of the demo's tools and its result, () without one."""
    number = type(result) is int and 0 < result <= max(VALUE.values())
    match call:
        case {"tool": "calculate"} if number:
            return (_REQUESTS["times"].answer({}, result),)
        case {"tool": "clock"} if isinstance(result, str) and _TIME.fullmatch(result):
            return (_REQUESTS["clock"].answer({}, result),)
        case {"tool": "timer", "amount": int(amount), "unit": str(unit)} if (
            result == "over" and amount in VALUE.values()
        ):
            item = str(call.get("item", "")).strip()
            slots = {"n": number_words(amount), "unit": unit, "item": item}
            return (_REQUESTS["timer_for" if item else "timer"].answer(slots, result),)
        case {"tool": "lookup", "field": "price"} if number:
            return (_REQUESTS["price"].answer({}, result),)
        case {"tool": "lookup", "field": "place"} if isinstance(result, str) and result in ROOMS:
            return (_REQUESTS["place"].answer({}, result),)
        case {"tool": "convert", "unit": str(unit), "to": to} if (
            number and (unit, to) in CONVERSIONS
        ):
            return (_REQUESTS[f"convert_{unit}"].answer({}, result),)
    return ()


def _any(words: Iterable[str]) -> str:
    return "(?:" + "|".join(sorted(words)) + ")"


def _number() -> str:
    """A pattern of the numbers of `number_words`."""
    digit = _any(map(number_words, range(1, 10)))
    tens = _any(map(number_words, range(20, 100, 10)))
    small = f"(?:{tens}(?: {digit})?|{_any(map(number_words, range(1, 20)))})"
    return f"(?:zero|{digit} hundred(?: {small})?|{small})"


_NUMBER = _number()


def _kinds() -> list[tuple[ToolRequest, re.Pattern[str], re.Pattern[str]]]:
    """Each kind of request, with patterns of its words as delegated, and of its corrections."""
    units = _any(tool_requests.TIMER_UNITS)
    values = {name: f"(?P<{name}>{_NUMBER})" for name in ("n", "a", "b")}
    values |= {"unit": f"(?P<unit>{units})", "item": rf"(?P<item>(?!{_NUMBER}\b)[a-z]+)"}
    found = []
    for request in tool_requests.TOOL_REQUESTS:
        fix = request.fix.replace("the ", "(?:the )?")
        if fix.startswith("{n} "):  # users leave the unit out: "no, fifteen"
            fix = f"{{n}}(?: {fix.removeprefix('{n} ')})?"
        delegated, fix = (text.format(**values) for text in (request.delegated, fix))
        found.append((request, re.compile(delegated), re.compile(fix)))
    return found


_KINDS = _kinds()


def _corrections(request: str, said: Sequence[str]) -> Sequence[str] | None:
    """See `Trained`; what is left out comes from the request. An unknown request fits all words."""
    for kind, delegated, fix in _KINDS:
        found = delegated.fullmatch(request)
        if found is None:
            continue
        slots, whole = found.groupdict(), []
        for words in said:
            change = fix.fullmatch(words)
            if change is None:
                return None
            slots |= {name: value for name, value in change.groupdict().items() if value}
            whole.append(kind.fix.format(**slots))
        return whole
    return said


def _calls() -> tuple[Call, ...]:
    """Two calls of each kind of request, with different values where there are several."""
    found = []
    for request in tool_requests.TOOL_REQUESTS:
        for place in (0, -1):
            found.append(request.call({name: got[place] for name, got in request.slots.items()}))
    return tuple(found)


DEMO = Trained(_calls(), _answers, _corrections)


@functools.cache
def _sentences() -> re.Pattern[str]:
    words = {*domain.answer_words(), *domain.said_words(), *tool_requests.ITEMS, *ROOMS}
    word, units = _any(words - {*VALUE}), _any(UNITS)
    return re.compile(
        rf"it is {_NUMBER}(?: {units})?|{_NUMBER} {units} are over|it is exactly {_NUMBER}|"
        rf"it is {_NUMBER} past {_NUMBER}|it is in the {word}|it is time for the {word}|"
        rf"{tool_requests.FAILURE}"
    )


def says(text: str) -> bool:
    """Whether the demo's live model can say a result in these words."""
    return _sentences().fullmatch(" ".join(text.split())) is not None
