"""The picture of a conversation: both sides with words and measured delays, and the step times.

The picture has several rows of time, called staves. Each stave shows the waveforms of user and
model, and below them the lanes of the background model.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interaction.evaluation import lanes
from interaction.evaluation.events import NOBODY, TURN_S, Event
from interaction.evaluation.transcript import Mark, SessionView, Word

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
USER, MODEL = "#2f6db5", "#d9722e"
RESPONSE, STOP = "#18864b", "#c22f4b"
BANDS = {  # kind of event -> (color, name)
    "request": ("#dbe8f6", "request"),
    "pause_request": ("#dbe8f6", "request with a pause"),
    "interrupt_stop": ("#f8d9de", "stop"),
    "interrupt_request": ("#f8d9de", "interrupts: new request"),
    "interrupt_correction": ("#f8d9de", "interrupts: correction"),
    "tool_request": ("#e7ddf5", "needs a tool"),
    "tool_request_cancel": ("#f8d9de", "cancels"),
    "tool_request_update": ("#e7ddf5", "corrects"),
    "backchannel": ("#e3f1de", "backchannel"),
    "side_speech": ("#eceef1", "to somebody else"),
    "background": ("#eceef1", "others talk"),
    "silence": ("#ffffff", "silence"),
    "noise": ("#f5f5f2", "noise"),
}
STAVE_S = 16.0  # s, longest mean duration of a stave
SHIFT_S = 2.0  # s by which a stave may begin earlier or later
WORD_ROWS = 3  # lines for words below a waveform
SLIP_S = 0.06  # s by which a word may be late to stay on its line
LANE_USER, LANE_MODEL = 2.05, -0.05  # middle of each waveform, in units of the vertical axis
BOTTOM, TOP = -1.75, 3.3  # edges of a stave without lanes, in units of the vertical axis
INCHES = 2.75  # height of such a stave, inches
HALF = 0.56  # half the height of a waveform, in units of the vertical axis
INCHES_PER_CHARACTER = 0.069  # mean width of a character, inches
LATE_S = 0.2  # s, deadline of a step
LEFT, RIGHT = 0.055, 0.985  # edges of the staves, as shares of the picture's width
WIDTH = 16  # inches


def envelope(pcm: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest sample of equal parts of a signal.

    Args:
      pcm: float32[n].
      width: Number of parts; n at most.

    Returns:
      Two arrays float32[width].
    """
    parts = np.array_split(np.asarray(pcm), max(1, min(width, len(pcm))))
    return np.array([p.min() for p in parts]), np.array([p.max() for p in parts])


def set_words(words: Sequence[Word], seconds_per_character: float) -> list[tuple[Word, float, int]]:
    """Places words on lines so that they do not overlap.

    Args:
      words: In order of time.
      seconds_per_character: Width of a character on the time axis, s.

    Returns:
      (word, time, line) of each word: on the top line if it is free, or else on a line below that
      of the word before it.
    """
    free = [-np.inf] * WORD_ROWS
    placed: list[tuple[Word, float, int]] = []
    for word in words:
        below = placed[-1][2] + 1 if placed else 0
        order = [0, *range(below, WORD_ROWS), *range(1, min(below, WORD_ROWS))]
        fitting = (i for i in order if free[i] <= word.time_s + SLIP_S)
        line = next(fitting, int(np.argmin(free)))
        time = max(word.time_s, min(free[line], word.time_s + SLIP_S))
        free[line] = time + (len(word.text) + 0.9) * seconds_per_character
        placed.append((word, time, line))
    return placed


def cut_staves(conversation: SessionView, duration: float) -> np.ndarray:
    """Chooses the times at which staves begin, in the middle of silence where possible.

    Args:
      conversation: The conversation.
      duration: Its length, s.

    Returns:
      float64[staves + 1], s; the last one is `duration`.
    """
    staves = max(1, int(np.ceil(duration / STAVE_S - 1e-6)))
    cuts = [0.0]
    for stave in range(1, staves):
        ideal = duration * stave / staves
        times = np.arange(ideal - SHIFT_S, ideal + SHIFT_S, 0.05)
        busy = [(row.start_s, row.end_s) for row in conversation.rows]
        room = [min([abs(t - edge) for span in busy for edge in span], default=0.0) for t in times]
        inside = [any(start <= t <= end for start, end in busy) for t in times]
        free = np.where(inside, -np.asarray(room), np.minimum(room, 0.5))
        cuts.append(float(times[np.argmax(free - 0.02 * np.abs(times - ideal))]))
    return np.asarray([*cuts, duration])


def draw(conversation: SessionView, title: str = "") -> Any:  # noqa: ANN401 - matplotlib Figure
    """Draws a conversation.

    Args:
      conversation: From `transcript.converse`.
      title: A line above the picture.

    Returns:
      A matplotlib Figure: the staves, and below them the step times.
    """
    from matplotlib.figure import Figure

    duration = len(conversation.user) / 16_000
    cuts = cut_staves(conversation, duration)
    staves, span = len(cuts) - 1, float(np.diff(cuts).max())
    inches = INCHES * (1 + lanes.depth(conversation.lanes) / (TOP - BOTTOM))
    height = inches * staves + 2.2
    figure = Figure(figsize=(WIDTH, height), dpi=110, facecolor=PAPER)
    grid = figure.add_gridspec(
        staves + 1,
        1,
        height_ratios=[inches] * staves + [1.05],
        left=LEFT,
        right=RIGHT,
        top=1 - 0.72 / height,
        bottom=0.5 / height,
        hspace=0.19,
    )
    peaks = [
        max(float(np.quantile(np.abs(pcm), 0.9995)), 0.02)
        for pcm in (conversation.user, conversation.model)
    ]
    for stave in range(staves):
        axes = figure.add_subplot(grid[stave])
        _draw_stave(axes, conversation, cuts[stave], cuts[stave] + span, cuts[stave + 1], peaks)
    _draw_steps(figure.add_subplot(grid[staves]), conversation.step_s, duration)
    _draw_header(figure, title, bool(conversation.lanes))
    return figure


def save(conversation: SessionView, path: str | os.PathLike, title: str = "") -> None:
    """Writes the picture of a conversation as PNG, SVG or PDF, as the path's suffix says."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw(conversation, title).savefig(str(path))


def _draw_header(figure: Any, title: str, background: bool) -> None:  # noqa: ANN401
    """Draws title and legend."""
    from matplotlib.lines import Line2D

    height = figure.get_figheight()
    figure.text(LEFT, 1 - 0.3 / height, title, fontsize=13, color=INK, weight="bold", va="center")
    entries = [
        (USER, "user, with the model's transcript"),
        (MODEL, "model, with its text"),
        (RESPONSE, "response latency"),
        (STOP, "stop latency"),
    ]
    if background:
        entries = [(color, name.split(",")[0]) for color, name in entries]
        entries += [(lanes.SHADES[lanes.THINKING], "background model reasons")]
        entries += [(lanes.SHADES[lanes.TOOL], "tool works")]
    figure.legend(
        [Line2D([], [], marker="o", ls="", ms=7, color=color) for color, _ in entries],
        [name for _, name in entries],
        loc="center right",
        bbox_to_anchor=(RIGHT, 1 - 0.3 / height),
        ncols=len(entries),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handletextpad=0.1,
        columnspacing=1.4,
        borderaxespad=0,
        borderpad=0,
    )


def _draw_stave(
    axes: Any,  # noqa: ANN401
    conversation: SessionView,
    start: float,
    right: float,
    end: float,
    peaks: Sequence[float],
) -> None:
    """Draws the stave from `start` to `end`, s, on a time axis that ends at `right`, s."""
    bottom = BOTTOM - lanes.depth(conversation.lanes)
    axes.set(xlim=(start, right), ylim=(bottom, TOP))
    names = [(LANE_USER, "user", USER), (LANE_MODEL, "model", MODEL)]
    names += [((bottom + BOTTOM) / 2, "behind", lanes.COLOR)] * bool(conversation.lanes)
    levels, labels, colors = zip(*names, strict=True)
    axes.set_yticks(levels, labels, fontsize=11, weight="bold")
    for label, color in zip(axes.get_yticklabels(), colors, strict=True):
        label.set_color(color)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0, labelsize=8.5, colors=FAINT, pad=2)
    axes.set_xticks(np.arange(np.ceil(start), end + 1e-6), minor=False)
    axes.set_xticklabels([f"{t:.0f} s" for t in axes.get_xticks()])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.vlines(axes.get_xticks(), bottom, 2.85, color="#eef1f4", lw=0.8, zorder=0)
    _draw_events(axes, conversation.events, start, end)
    per_character = INCHES_PER_CHARACTER * (right - start) / (WIDTH * (RIGHT - LEFT))
    sides = (
        (conversation.user, conversation.user_words, LANE_USER, USER, peaks[0]),
        (conversation.model, conversation.model_words, LANE_MODEL, MODEL, peaks[1]),
    )
    for pcm, words, lane, color, peak in sides:
        piece = pcm[int(start * 16_000) : int(end * 16_000)]
        low, high = envelope(piece, 1_700)
        times = np.linspace(start, end, len(low))
        scale = HALF / peak
        axes.hlines(lane, start, end, color=color, lw=0.5, alpha=0.35, zorder=1)
        bottom, top = np.clip(low * scale, -HALF, HALF), np.clip(high * scale, -HALF, HALF)
        axes.fill_between(times, lane + bottom, lane + top, color=color, lw=0.2, zorder=3)
        inside = [word for word in words if start <= word.time_s < end]
        for word, time, line in set_words(inside, per_character):
            y = lane - HALF - 0.16 - 0.245 * line
            late = time + len(word.text) * per_character > right
            axes.text(
                right if late else time,
                y,
                "".join(c for c in word.text if c.isprintable()),
                fontsize=8.5,
                parse_math=False,
                color=color,
                va="center",
                ha="right" if late else "left",
                zorder=5,
            )
    for mark in conversation.marks:
        if start <= mark.end_s and mark.start_s < end:
            _draw_mark(axes, mark, start, right)
    lanes.draw_lanes(axes, conversation.lanes, start, end, right)


def _draw_events(axes: Any, events: Sequence[Event], start: float, end: float) -> None:  # noqa: ANN401
    """Draws colored bands with names, and hatched pauses."""
    for event in events:
        color, name = BANDS[event.kind]
        if event.end_s <= start or event.start_s >= end:
            continue
        low, high = max(event.start_s, start), min(event.end_s, end)
        bottom = LANE_USER - HALF - 0.04 if event.kind not in NOBODY else BOTTOM
        axes.fill_between([low, high], bottom, 2.78, color=color, lw=0, zorder=0.5)
        if event.start_s >= start:
            edge = min(low, axes.get_xlim()[1] - 0.075 * len(name))
            axes.text(edge, 2.86, name, fontsize=8.5, color=INK, va="bottom", style="italic")
        for first, last in event.pauses:
            first, last = max(first, start), min(last, end)
            if last <= first:
                continue
            axes.fill_between(
                [first, last],
                LANE_USER - HALF - 0.04,
                2.78,
                facecolor=PAPER,
                edgecolor="#a9c4e2",
                hatch="////",
                lw=0,
                zorder=0.6,
            )


def _draw_mark(axes: Any, mark: Mark, start: float, end: float) -> None:  # noqa: ANN401
    """Draws a delay as a bar between the two sides, with its length beside it."""
    color = RESPONSE if mark.kind == "response" else STOP
    low, high = max(mark.start_s, start), min(mark.end_s, end)
    level = LANE_MODEL + HALF + 0.13
    axes.fill_between([low, high], level - 0.055, level + 0.055, color=color, lw=0, zorder=6)
    axes.vlines([low], level, LANE_USER - HALF, color=color, lw=0.9, ls=(0, (2, 2)), zorder=2)
    axes.vlines([high], LANE_MODEL - HALF, level, color=color, lw=0.9, ls=(0, (2, 2)), zorder=4)
    right = high + 0.8 > end
    axes.text(
        low - 0.05 if right else high + 0.05,
        level,
        f"{mark.end_s - mark.start_s:.2f} s",
        fontsize=9,
        weight="bold",
        color=color,
        va="center",
        ha="right" if right else "left",
        zorder=7,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
    )


def _draw_steps(axes: Any, step_s: np.ndarray, duration: float) -> None:  # noqa: ANN401
    """Draws the wall time of each step, float64[turns] in s, on a logarithmic scale."""
    milliseconds = 1_000 * np.asarray(step_s)
    times = TURN_S * (np.arange(len(step_s)) + 1)
    late = milliseconds > 1_000 * LATE_S
    floor = min(1.0, 0.8 * float(milliseconds.min()))
    colors = np.where(late, STOP, "#6b7f92")
    axes.bar(times, milliseconds - floor, 0.8 * TURN_S, bottom=floor, color=colors, lw=0)
    axes.axhline(1_000 * LATE_S, color=STOP, lw=1.2)
    axes.set(xlim=(0, duration), yscale="log", ylim=(floor, max(420.0, 2 * milliseconds.max())))
    ticks = [t for t in (1, 10, 100, 1_000) if floor <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:,} ms" for t in ticks], fontsize=8.5, color=FAINT)
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=8.5, colors=FAINT)
    axes.set_xticks(np.arange(0, duration, 5))
    axes.set_xticklabels([f"{t:.0f} s" for t in axes.get_xticks()])
    for side in axes.spines.values():
        side.set_visible(False)
    median, slow = np.percentile(milliseconds, [50, 99])
    axes.set_title(
        f"time of each step: median {median:.1f} ms, p99 {slow:.1f} ms, "
        f"{int(late.sum())} of {len(late)} past the deadline of 200 ms",
        fontsize=9,
        color=INK,
        loc="left",
        pad=3,
    )
