"""The background model's lane in the picture of a conversation: what it was asked, and did."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from interaction.background import agent, delegations
from interaction.evaluation.delegation_history import Delegation
from interaction.evaluation.events import reply_time
from interaction.evaluation.utterances import Said

THINKING, TOOL, WAITING, SAID = "thinking", "tool", "waiting", "said"
COLOR = "#7a4fb0"
SHADES = {THINKING: "#d9cbee", TOOL: COLOR, WAITING: "#eee8f6", SAID: "#d9722e"}
STOPPED = "#c22f4b"
GAP_S = 3.0  # between two delegations in one row
DEPTH = 1.15  # height of a row
TOP = -2.325  # height of the first row's bars
HALF = 0.13  # of a bar


class Bar(NamedTuple):
    """Something that lasts."""

    kind: str  # one of SHADES
    start_s: float
    end_s: float


class Label(NamedTuple):
    """Words at a time."""

    time_s: float
    text: str


class Lane(NamedTuple):
    """One delegation as it is drawn."""

    number: int
    row: int
    bars: list[Bar]
    told: list[Label]  # what the model handed over: the request, corrections, a cancellation
    calls: list[Label]  # of tools, with their results
    cancelled_s: float  # -1 if it was not

    @property
    def start_s(self) -> float:
        """When it was asked."""
        return self.told[0].time_s

    @property
    def end_s(self) -> float:
        """When the last of it is over."""
        return max([self.start_s, self.cancelled_s, *(bar.end_s for bar in self.bars)])


def make_lanes(found: Sequence[Delegation], said: Sequence[Said], end_s: float) -> list[Lane]:
    """Puts delegations side by side.

    Args:
      found: As they happened.
      said: What the model said, see `utterances.attribute`.
      end_s: End of the conversation.
    """
    lanes: list[Lane] = []
    for one in found:
        spans = [
            (piece.utterance.start_s, piece.utterance.end_s)
            for piece in said
            if piece.delegation == one.number and not piece.stray
        ]
        lane = _lane(one, spans, end_s)
        free = {0, 1, 2} - {o.row for o in lanes if o.end_s + GAP_S > lane.start_s}
        lanes.append(lane._replace(row=min(free, default=len(lanes) % 3)))
    return lanes


def _lane(one: Delegation, spans: Sequence[tuple[float, float]], end_s: float) -> Lane:
    asked_s = reply_time(one.closed)
    bars, calls = [], []
    told = [Label(asked_s, one.request)]
    state, since, call = THINKING, asked_s, ""
    for step in one.steps:
        now = reply_time(step.turn)
        if step.kind == agent.CALL:
            bars.append(Bar(state, since, now))
            state, since, call = TOOL, now, brief_call(step.text)
            calls.append(Label(now, call))
        elif step.kind == agent.RESULT and state == TOOL:
            bars.append(Bar(state, since, now))
            state, since = THINKING, now
            calls[-1] = calls[-1]._replace(text=f"{call} → {brief_result(step.text)}")
        elif step.kind == delegations.UPDATED:
            bars.append(Bar(state, since, now))
            state, since = THINKING, now
            told.append(Label(now, step.text))
        elif step.kind == agent.FAILED:
            calls.append(Label(now, f"failed: {step.text}"))
    over = reply_time(one.cancelled) if one.cancelled >= 0 else end_s
    if one.arrived >= 0 and one.cancelled < 0:
        arrived_s = reply_time(one.arrived)
        bars.append(Bar(state, since, arrived_s))
        start, stop = spans[0] if spans else (end_s, end_s)
        bars += [Bar(WAITING, arrived_s, start), Bar(SAID, start, stop)]
    else:
        bars.append(Bar(state, since, over))
    if one.cancelled >= 0:
        told.append(Label(over, "cancelled"))
    cancelled_s = over if one.cancelled >= 0 else -1.0
    bars = [bar for bar in bars if bar.end_s > bar.start_s]
    return Lane(one.number, 0, bars, told, calls, cancelled_s)


def brief_call(text: str) -> str:
    """A call as people write it: `lookup(pepper, price)`."""
    try:
        call = dict(json.loads(text))
        name = call.pop("tool")
    except (ValueError, TypeError, KeyError):
        return text[:30]
    return f"{name}({', '.join(str(value) for value in call.values())})"[:40]


def brief_result(text: str) -> str:
    """What a tool returned, or its error."""
    try:
        result = dict(json.loads(text))
    except (ValueError, TypeError):
        return text[:20]
    return str(result.get("result", f"error: {result.get('error')}"))[:30]


def summary(lane: Lane) -> str:
    """What became of a delegation, in a line."""
    spoken = [bar for bar in lane.bars if bar.kind == SAID]
    ends = [f"said after {bar.start_s - lane.start_s:.1f} s" for bar in spoken]
    ends += [f"cancelled after {lane.cancelled_s - lane.start_s:.1f} s"] * (lane.cancelled_s >= 0)
    fixes = [f"corrected: {label.text}" for label in lane.told[1:] if label.text != "cancelled"]
    return ", ".join([*fixes, *(label.text for label in lane.calls), *ends])


def depth(lanes: Sequence[Lane]) -> float:
    """Height that the lanes take below the two sides; 0 without any."""
    return DEPTH * (1 + max(lane.row for lane in lanes)) if lanes else 0.0


def draw_lanes(axes: Any, lanes: Sequence[Lane], start: float, end: float, right: float) -> None:  # noqa: ANN401
    """Draws what happens from `start` to `end` on an axis that reaches to `right`."""
    for lane in lanes:
        level = TOP - DEPTH * lane.row
        for bar in lane.bars:
            low, high = max(bar.start_s, start), min(bar.end_s, end)
            if low < high:
                axes.fill_between(
                    [low, high], level - HALF, level + HALF, color=SHADES[bar.kind], lw=0, zorder=3
                )
        words = ((lane.told, HALF + 0.2, "normal"), (lane.calls, -HALF - 0.22, "italic"))
        for labels, above, style in words:
            for label in labels:
                if start <= label.time_s < end:
                    late = label.time_s + 0.1 * len(label.text) > right
                    axes.text(
                        right if late else label.time_s,
                        level + above,
                        label.text,
                        fontsize=8.5,
                        parse_math=False,
                        color=STOPPED if label.text == "cancelled" else COLOR,
                        style=style,
                        va="center",
                        ha="right" if late else "left",
                        zorder=5,
                    )
        if start <= lane.cancelled_s < end:
            axes.plot([lane.cancelled_s], [level], marker="x", ms=8, mew=2, color=STOPPED, zorder=6)
