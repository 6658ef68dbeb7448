"""What the released pair was trained on: calls, results, corrections, and the words for the user.

The models turn anything else into words too, but wrong ones. So code decides: a tool that the
background model cannot call is refused, a result or an answer without a form here fails.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from interaction.data import domain
from interaction.data.domain import tool_requests
from interaction.data.domain.tool_requests import CONVERSIONS, UNITS, VALUE, Call, number_words
from interaction.data.domain.words import ROOMS

_REQUESTS = {request.name: request for request in tool_requests.TOOL_REQUESTS}
_TIME = re.compile(r"([1-9]|1[0-2]):[0-5][0-9]")


class Trained(NamedTuple):
    """What a background model was trained on."""

    calls: tuple[Call, ...]  # an example of each form of a call
    # The right answers for a call and its result; () if the result has no form that it knows.
    answers: Callable[[Call, Any], tuple[str, ...]]
    corrects: Callable[[str, str], bool]  # whether a correction can be one of a request


def _answers(call: Call, result: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The right answer for a call of the demo's tools and its result, () without one."""
    number = type(result) is int and result in VALUE.values()
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
        case {"tool": "lookup", "field": "place"} if isinstance(result, str):
            said = _REQUESTS["place"].answer({}, result.removeprefix("in the "))
            return (said,) if says(said) else ()
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


def _requests() -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    """Patterns of each kind of request, as it is delegated, and of its corrections."""
    values = dict.fromkeys(("n", "a", "b"), _NUMBER)
    values |= {"unit": _any(tool_requests.TIMER_UNITS), "item": rf"(?!{_NUMBER}\b)[a-z]+"}
    found = []
    for request in tool_requests.TOOL_REQUESTS:
        fix = request.fix.format(**values).replace("the ", "(?:the )?")
        if fix.startswith(f"{_NUMBER} "):  # users leave the unit out: "no, fifteen"
            fix = f"{_NUMBER}(?: {fix.removeprefix(_NUMBER + ' ')})?"
        found.append((re.compile(request.delegated.format(**values)), re.compile(fix)))
    return found


_PATTERNS = _requests()


def _corrects(request: str, correction: str) -> bool:
    """Whether a correction has the form of those of a request; True for an unknown request."""
    fixes = [fix for delegated, fix in _PATTERNS if delegated.fullmatch(request)]
    return not fixes or any(fix.fullmatch(correction) for fix in fixes)


def _calls() -> tuple[Call, ...]:
    """Two calls of each kind of request, with different values where there are several."""
    found = []
    for request in tool_requests.TOOL_REQUESTS:
        for place in (0, -1):
            found.append(request.call({name: got[place] for name, got in request.slots.items()}))
    return tuple(found)


DEMO = Trained(_calls(), _answers, _corrects)


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
