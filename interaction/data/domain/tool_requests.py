"""Tool requests: how users say them, how the model delegates them, their calls and answers."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interaction.data.domain import words as w
from interaction.data.domain.form import Slots, combination_hash

Call = dict[str, Any]  # "tool" and its arguments
Prices = Mapping[str, tuple[int, str]]  # table of `lookup`: item -> (price in dollars, room)

ITEMS = tuple(  # many, so that the model transcribes items that training never looks up as well
    """
    milk bread butter cheese apples coffee sugar pepper rice candle hammer pencil lemon banana
    potato onion carrot chocolate honey tomato hat ball book cake spoon chair radio coat knife boat
    pumpkin cabbage peach apple orange cherry strawberry cucumber table bed door window wall car
    clock letter music song list rocket robot castle tree flowers seed beans grass snow coal water
    ring star moon house trash plants computer machine heater fan light tiger dragon bear dog cat
    cow duck lion snake bee owl wolf chicken bird donkey horse rabbit mouse elephant whale monkey
    zebra camel frog fish spider sheep puppy kitten goat goose teeth baby king web nest hive
    """.split()
)
# Items that training never looks up. Its timers name them more often, so that the model transcribes
# them as well as the others.
HELD_OUT_ITEMS = ("butter", "pepper", "candle", "onion", "spoon")
HELD_OUT_AMOUNTS = {  # unit -> amounts that training never has with it, only with other units
    "weeks": ("six", "eleven"),
    "feet": ("eleven",),
    "hours": ("six",),
    "pounds": ("six", "eleven"),
    "yards": ("six",),
    "seconds": ("six", "eleven"),
}
FAILURE = "sorry that did not work"
OKAY = "okay"  # the reply to a cancellation or a correction
CANCELS = ("never mind", "forget it", "forget about it", "never mind that", "cancel that")
FIXERS = ("no i mean", "no wait", "sorry i meant", "no i meant")

_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = ("zero", *w.NUMBERS, *_TEENS)
_LARGEST = 999  # largest number that is said
TIMER_UNITS = {"seconds": 1, "minutes": 60}  # s
_SOON = w.NUMBERS[1:]  # two to twelve; most timers are short enough to ring in a session
_LATER = tuple(f"{ten}{ones}" for ten in _TENS[:4] for ones in ("", " six", " nine"))
_WAITS = (*_SOON * 4, *_LATER)
_MOST = 59  # largest amount that is converted
CONVERSIONS = {  # (unit, other unit) -> how many of the other are in one
    ("weeks", "days"): 7,
    ("feet", "inches"): 12,
    ("hours", "minutes"): 60,
    ("pounds", "ounces"): 16,
    ("yards", "feet"): 3,
}
UNITS = tuple(sorted({*TIMER_UNITS, *(unit for pair in CONVERSIONS for unit in pair), "dollars"}))


def number_words(number: int) -> str:
    """A number in words.

    Raises:
      ValueError: The number is not in 0..999.
    """
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"number: got {number}, wanted 0..{_LARGEST}; round or split it")
    if number < 20:
        return _SMALL[number]
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{_SMALL[hundreds]} hundred" + (f" {number_words(rest)}" if rest else "")
    tens, ones = divmod(rest, 10)
    return _TENS[tens - 2] + (f" {_SMALL[ones]}" if ones else "")


VALUE = {number_words(number): number for number in range(_LARGEST + 1)}


@dataclasses.dataclass(frozen=True)
class ToolRequest:
    """One kind of request that needs a tool; `{name}` in its texts stands for a slot."""

    name: str
    templates: tuple[str, ...]  # phrasings of the user; `|` allows a pause
    slots: dict[str, tuple[str, ...]]  # values of each slot
    holding_reply: str  # what the model says while the tool works
    delegated: str  # the words that the model writes for the background model
    call: Callable[[Slots], Call]
    answer: Callable[[Slots, Any], str]  # words for the user, from the slots and the tool's result
    fix: str = ""  # the words of a correction; "" for requests that cannot be corrected
    changes: tuple[str, ...] = ()  # slots that a correction may change
    held_out: Callable[[Slots], bool] = lambda slots: False  # whether training never has the slots
    weight: float = 1.0  # relative frequency

    def parts(self, template: str, slots: Slots) -> list[str]:
        """Words of a request, cut where the user may pause."""
        return [part.strip().format(**slots) for part in template.split("|")]


def _times(slots: Slots) -> Call:
    return {"tool": "calculate", "expression": f"{VALUE[slots['a']]} * {VALUE[slots['b']]}"}


def _clock_words(slots: Slots, time: str) -> str:
    hour, minute = map(int, time.split(":"))
    return f"it is {number_words(minute) if minute else 'exactly'} " + (
        f"past {number_words(hour)}" if minute else number_words(hour)
    )


def _held_out_wait(slots: Slots) -> bool:
    return slots["n"] in HELD_OUT_AMOUNTS.get(slots["unit"], ())


def _timer(slots: Slots) -> Call:
    call: Call = {"tool": "timer", "amount": VALUE[slots["n"]], "unit": slots["unit"]}
    return call | ({"item": f" {slots['item']}"} if "item" in slots else {})


def _looking_up(
    field: str, templates: tuple[str, ...], delegated: str, answer: Callable[[Slots, Any], str]
) -> ToolRequest:
    def call(slots: Slots) -> Call:
        # With a leading space the item is the same token as in the user transcript, to be copied.
        return {"tool": "lookup", "item": f" {slots['item']}", "field": field}

    return ToolRequest(
        field,
        templates,
        {"item": ITEMS},
        holding_reply="let me look",
        delegated=delegated,
        call=call,
        answer=answer,
        fix="the {item}",
        changes=("item",),
        held_out=lambda slots: slots["item"] in HELD_OUT_ITEMS,
        weight=1.8,
    )


def _convert(slots: Slots) -> Call:
    unit, to = slots["pair"].split(" to ")
    return {"tool": "convert", "amount": VALUE[slots["n"]], "unit": unit, "to": to}


def _converting(pair: tuple[str, str], weight: float) -> ToolRequest:
    unit, to = pair
    amounts = range(13, min(_MOST, _LARGEST // CONVERSIONS[pair]) + 1)
    return ToolRequest(
        f"convert_{unit}",
        (
            f"how many {to} are | {{n}} {unit}",
            f"convert to {to} | {{n}} {unit}",
            f"how many {to} make | {{n}} {unit}",
            f"tell me in {to} | {{n}} {unit}",
        ),
        {
            "n": (*_SOON * 8, *map(number_words, amounts)),
            "pair": (f"{unit} to {to}",),
        },
        holding_reply="let me see",
        delegated=f"{{n}} {unit} in {to}",
        call=_convert,
        answer=lambda slots, result: f"it is {number_words(result)} {to}",
        fix=f"{{n}} {unit}",
        changes=("n",),
        held_out=lambda slots: slots["n"] in HELD_OUT_AMOUNTS[unit],
        weight=weight,
    )


TOOL_REQUESTS: tuple[ToolRequest, ...] = (
    ToolRequest(
        "times",
        (
            "what is {a} times | {b}",
            "how much is {a} times | {b}",
            "multiply {a} by | {b}",
            "tell me {a} times | {b}",
        ),
        {"a": w.NUMBERS[2:], "b": w.NUMBERS[2:]},
        holding_reply="let me see",
        delegated="{a} times {b}",
        call=_times,
        answer=lambda slots, result: f"it is {number_words(result)}",
        fix="{b}",
        changes=("b",),
        held_out=lambda slots: combination_hash("times", slots) % 8 == 0,
        weight=1.8,
    ),
    ToolRequest(
        "clock",
        ("what time is it", "tell me the time", "do you have the time", "what is the time now"),
        {},
        holding_reply="one moment",
        delegated="the time",
        call=lambda slots: {"tool": "clock"},
        answer=_clock_words,
        weight=0.7,
    ),
    ToolRequest(
        "timer",
        (
            "ring a bell in | {n} {unit}",
            "ring me in | {n} {unit}",
            "give me a ring in | {n} {unit}",
            "ring in | {n} {unit}",
        ),
        {"n": _WAITS, "unit": tuple(TIMER_UNITS)},
        holding_reply="i will",
        delegated="ring in {n} {unit}",
        call=_timer,
        answer=lambda slots, result: f"{slots['n']} {slots['unit']} are over",
        fix="{n} {unit}",
        changes=("n", "unit"),
        held_out=_held_out_wait,
        weight=0.7,
    ),
    ToolRequest(
        "timer_for",
        (
            "ring in {n} {unit} for the | {item}",
            "ring a bell in {n} {unit} for the | {item}",
            "time the {item} for | {n} {unit}",
        ),
        {"n": _WAITS, "unit": tuple(TIMER_UNITS), "item": (*ITEMS, *HELD_OUT_ITEMS * 8)},
        holding_reply="i will",
        delegated="ring in {n} {unit} for {item}",
        call=_timer,
        answer=lambda slots, result: f"it is time for the {slots['item']}",
        fix="{n} {unit}",
        changes=("n", "unit"),
        held_out=_held_out_wait,
        weight=1.2,
    ),
    _looking_up(
        "price",
        (
            "what is the price of the | {item}",
            "tell me the price of the | {item}",
            "how much do i pay for the | {item}",
            "look up the price of the | {item}",
        ),
        delegated="price of {item}",
        answer=lambda slots, result: f"it is {number_words(result)} dollars",
    ),
    _looking_up(
        "place",
        (
            "in which room is the | {item}",
            "tell me the room of the | {item}",
            "look up the room of the | {item}",
            "where did i put the | {item}",
        ),
        delegated="room of {item}",
        answer=lambda slots, result: f"it is in the {result}",
    ),
    *(_converting(pair, 0.4) for pair in CONVERSIONS),
)


def draw_tool_request(rng: np.random.Generator) -> ToolRequest:
    """Draws a tool request by weight."""
    weights = np.array([request.weight for request in TOOL_REQUESTS])
    return TOOL_REQUESTS[rng.choice(len(TOOL_REQUESTS), p=weights / weights.sum())]


def draw_slots(request: ToolRequest, rng: np.random.Generator, held_out: bool) -> Slots:
    """Draws values of all slots.

    Args:
      request: Kind of the request.
      rng: Source of the draws.
      held_out: Whether the values are held out; ignored for a request without slots.

    Raises:
      ValueError: No such values came up in 1,000 draws.
    """
    for _ in range(1_000):
        slots = {
            name: values[int(rng.integers(len(values)))] for name, values in request.slots.items()
        }
        if request.held_out(slots) == held_out or not request.slots:
            return slots
    raise ValueError(
        f"held_out: got {held_out} for {request.name}, wanted a request that has such slots; "
        "draw another one"
    )


def imagine(
    request: ToolRequest,
    slots: Slots,
    names: Sequence[str],
    words: Sequence[str],
    rng: np.random.Generator,
) -> Slots:
    """Draws slots that are not held out, with values that users need not say.

    The background model learns from them to copy the request instead of recalling a known one.

    Args:
      request: Kind of the request.
      slots: Values to begin from.
      names: Slots that are drawn anew: numbers of 2 to 99, and any of `words` for items.
      words: Single words.
      rng: Source of the draws.
    """
    while True:
        drawn = dict(slots)
        for name in names:
            if name == "item":
                drawn[name] = words[int(rng.integers(len(words)))]
            elif slots[name] in VALUE:
                drawn[name] = number_words(int(rng.integers(2, 100)))
        call = request.call(drawn)
        result = true_result(call, {drawn.get("item", ""): (1, "")}, "1:00")
        small = not isinstance(result, int) or result <= _LARGEST
        if small and not request.held_out(drawn):
            return drawn


@functools.cache
def _held_out_answers() -> set[str]:
    """Answers to the held-out products, conversions and timers."""
    found = set()
    for request in TOOL_REQUESTS:
        if "item" not in request.slots:
            for values in itertools.product(*map(set, request.slots.values())):
                slots = dict(zip(request.slots, values, strict=True))
                if request.held_out(slots):
                    result = true_result(request.call(slots), {}, "")
                    found.add(request.answer(slots, result))
    return found


def imagine_answer(words: Sequence[str], rng: np.random.Generator) -> str:
    """Draws an answer that does not belong to any request, so that it can only be copied.

    Half of the numbers are at most twelve, as users say them. The answer names no held-out amount
    and is not the result of a held-out request.

    Args:
      words: Single words.
      rng: Source of the draws.
    """
    most = (13, 100, _LARGEST + 1)[rng.choice(3, p=(0.5, 0.25, 0.25))]
    while True:
        number = number_words(int(rng.integers(2, most)))
        unit = UNITS[int(rng.integers(len(UNITS)))]
        word = words[int(rng.integers(len(words)))]
        forms = (
            f"it is {number}",
            f"it is {number} {unit}",
            f"{number} {unit} are over",
            f"it is in the {word}",
            f"it is time for the {word}",
        )
        answer = forms[int(rng.integers(len(forms)))]
        if answer not in _held_out_answers() and number not in HELD_OUT_AMOUNTS.get(unit, ()):
            return answer


def draw_prices(rng: np.random.Generator) -> dict[str, tuple[int, str]]:
    """Draws a table for `lookup`; each session has its own, so that no model can learn it."""
    return {
        item: (int(rng.integers(1, 60)), w.ROOMS[int(rng.integers(len(w.ROOMS)))]) for item in ITEMS
    }


def said_words() -> list[str]:
    """Every word of tool requests, their replies and their answers, in alphabetical order."""
    texts = [FAILURE, OKAY, "exactly past over dollars hundred zero", *CANCELS, *FIXERS, *_SMALL]
    texts += _TENS
    for request in TOOL_REQUESTS:
        texts += [request.holding_reply, request.delegated, request.fix, *request.templates]
        texts += [value for values in request.slots.values() for value in values]
    plain = re.sub(r"\{\w+\}|\|", " ", " ".join(texts))
    return sorted(set(plain.split()))


def call_pieces() -> list[str]:
    """Pieces of which calls and results are made, as the tokenizer cuts their JSON."""
    names = "tool calculate expression clock timer seconds lookup item field price place convert"
    names += " amount unit to result error weeks days feet inches hours minutes pounds ounces yards"
    return ['\u0120{"', '":', '\u0120"', '",', '"}', "\u0120*", *names.split()]


def true_result(call: Call, prices: Prices, time: str) -> int | str:
    """The result of a call, as the demo's tools return it.

    Args:
      call: "tool" and its arguments.
      prices: Table of `lookup`.
      time: Time of day, "h:mm".
    """
    tool = call["tool"]
    if tool == "calculate":
        first, second = call["expression"].split(" * ")
        return int(first) * int(second)
    if tool == "lookup":
        return prices[call["item"].strip()][0 if call["field"] == "price" else 1]
    if tool == "convert":
        return call["amount"] * CONVERSIONS[call["unit"], call["to"]]
    return time if tool == "clock" else "over"
