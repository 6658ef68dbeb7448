"""The lanes of the background model in the picture of a conversation, below user and model.

A lane shows one delegation: bars for what lasts (reasoning, a tool, waiting, the spoken result) and
labels with words. Lanes that overlap in time are drawn in different rows.
"""

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
STOPPED = "#c22f4b"  # color of a cancellation
GAP_S = 3.0  # s, least time between two lanes in one row
# Lengths below are in units of the vertical axis.
DEPTH = 1.15  # distance of two rows
TOP = -2.325  # middle of the first row's bars
HALF = 0.13  # half the height of a bar


class Bar(NamedTuple):
    """A state of a delegation, and how long it lasts."""

    kind: str  # a key of SHADES
    start_s: float
    end_s: float


class Label(NamedTuple):
    """Words at a point in time."""

    time_s: float
    text: str


class Lane(NamedTuple):
    """One delegation in the picture; times on the user's clock."""

    number: int  # number of the delegation
    row: int
    bars: list[Bar]
    requests: list[Label]  # the request, corrections and a cancellation, by the model
    calls: list[Label]  # calls of tools with their results
    cancelled_s: float  # -1 without a cancellation

    @property
    def start_s(self) -> float:
        """When the request was delegated, s."""
        return self.requests[0].time_s

    @property
    def end_s(self) -> float:
        """When the last bar or the cancellation ends, s."""
        return max([self.start_s, self.cancelled_s, *(bar.end_s for bar in self.bars)])


def make_lanes(found: Sequence[Delegation], said: Sequence[Said], end_s: float) -> list[Lane]:
    """Makes a lane of each delegation, and chooses its row.

    Args:
      found: The delegations of a conversation.
      said: The utterances of the model, from `utterances.attribute`.
      end_s: End of the conversation, s.
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
    """The lane of a delegation whose result is said in `spans`, (start, end) in s; row 0."""
    asked_s = reply_time(one.closed)
    bars, calls = [], []
    requests = [Label(asked_s, one.request)]
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
            requests.append(Label(now, step.text))
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
        requests.append(Label(over, "cancelled"))
    cancelled_s = over if one.cancelled >= 0 else -1.0
    bars = [bar for bar in bars if bar.end_s > bar.start_s]
    return Lane(one.number, 0, bars, requests, calls, cancelled_s)


def brief_call(text: str) -> str:
    """A call in short form, such as `lookup(pepper, price)`."""
    try:
        call = dict(json.loads(text))
        name = call.pop("tool")
    except (ValueError, TypeError, KeyError):
        return text[:30]
    return f"{name}({', '.join(str(value) for value in call.values())})"[:40]


def brief_result(text: str) -> str:
    """The result of a tool or its error, in short form."""
    try:
        result = dict(json.loads(text))
    except (ValueError, TypeError):
        return text[:20]
    return str(result.get("result", f"error: {result.get('error')}"))[:30]


def summary(lane: Lane) -> str:
    """The history of a delegation in one line."""
    spoken = [bar for bar in lane.bars if bar.kind == SAID]
    ends = [f"said after {bar.start_s - lane.start_s:.1f} s" for bar in spoken]
    ends += [f"cancelled after {lane.cancelled_s - lane.start_s:.1f} s"] * (lane.cancelled_s >= 0)
    fixes = [f"corrected: {label.text}" for label in lane.requests[1:] if label.text != "cancelled"]
    return ", ".join([*fixes, *(label.text for label in lane.calls), *ends])


def depth(lanes: Sequence[Lane]) -> float:
    """Height of all lanes, in units of the vertical axis."""
    return DEPTH * (1 + max(lane.row for lane in lanes)) if lanes else 0.0


def draw_lanes(axes: Any, lanes: Sequence[Lane], start: float, end: float, right: float) -> None:  # noqa: ANN401
    """Draws the lanes from `start` to `end`, s, on a time axis that ends at `right`, s."""
    for lane in lanes:
        level = TOP - DEPTH * lane.row
        for bar in lane.bars:
            low, high = max(bar.start_s, start), min(bar.end_s, end)
            if low < high:
                axes.fill_between(
                    [low, high], level - HALF, level + HALF, color=SHADES[bar.kind], lw=0, zorder=3
                )
        words = ((lane.requests, HALF + 0.2, "normal"), (lane.calls, -HALF - 0.22, "italic"))
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
