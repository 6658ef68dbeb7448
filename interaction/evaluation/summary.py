"""From the outcomes of many sessions to one table of figures, with counts and intervals."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from interaction.evaluation.scoring import Outcome, SessionScore
from interaction.evaluation.statistics import poisson, wilson

RATES = {  # JSON key -> measure
    "response_rate": "response",
    "pause_takeover_rate": "pause_takeover",
    "answer_exact": "answer",
    "interruption_stop_rate": "interruption_stop",
    "interruption_answer_exact": "interruption_answer",
    "backchannel_keep_rate": "backchannel_keep",
    "other_speech_ignore_rate": "other_speech_ignore",
    "early_response_rate": "early",
}
LATENCIES = {  # prefix of the JSON key -> measure
    "response_latency": "response",
    "interruption_stop_latency": "interruption_stop",
}
ASKED: dict[str, tuple[str, float]] = {
    "response_rate": (">=", 0.98),
    "response_latency_p50_s": ("<=", 0.40),
    "response_latency_p90_s": ("<=", 0.70),
    "pause_takeover_rate": ("<=", 0.10),
    "answer_exact": (">=", 0.90),
    "interruption_stop_rate": (">=", 0.95),
    "interruption_answer_exact": (">=", 0.85),
    "backchannel_keep_rate": (">=", 0.92),
    "other_speech_ignore_rate": (">=", 0.90),
    "false_start_per_minute": ("<=", 0.1),
    "asr_word_accuracy_ratio": (">=", 0.90),
}


class Scored(Protocol):
    """Something that went right or wrong."""

    @property
    def ok(self) -> bool:
        """Which of the two."""


_Some = TypeVar("_Some", bound=Scored)


def rate_of(outcomes: Sequence[Scored]) -> dict[str, Any]:
    """Rate, count and interval of outcomes that are all scored."""
    n, ok = len(outcomes), sum(outcome.ok for outcome in outcomes)
    return {"rate": ok / n if n else None, "n": n, "interval": wilson(ok, n)}


def rates_by(outcomes: Sequence[_Some], key: Callable[[_Some], str]) -> dict[str, dict[str, Any]]:
    """Rates of groups of outcomes, the most frequent group first."""
    groups: dict[str, list[_Some]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    return {
        name: rate_of(group) for name, group in sorted(groups.items(), key=lambda g: -len(g[1]))
    }


def _combination(outcome: Outcome) -> str:
    return "held_out_combination" if outcome.event.held_out else "seen_combination"


def summarise(scores: Iterable[SessionScore]) -> dict[str, Any]:
    """Figures of a set of sessions.

    Args:
      scores: one for each session.

    Returns:
      A dict for JSON: every figure by its key (None where nothing could be scored), and under
      "counts", "intervals" (95%: Wilson for rates, Byar for false starts), "excluded" (reasons
      with counts) and "breakdown" what stands behind them.
    """
    scores = list(scores)
    everything = [outcome for score in scores for outcome in score.outcomes]
    scored: dict[str, list[Outcome]] = defaultdict(list)
    excluded: dict[str, Counter] = defaultdict(Counter)
    for outcome in everything:
        if outcome.excluded:
            excluded[outcome.measure][outcome.excluded] += 1
        else:
            scored[outcome.measure].append(outcome)
    figures: dict[str, Any] = {}
    counts: dict[str, Any] = {"sessions": len(scores)}
    intervals: dict[str, Any] = {}
    for key, measure in RATES.items():
        rate = rate_of(scored[measure])
        figures[key], counts[key], intervals[key] = rate["rate"], rate["n"], rate["interval"]
    for prefix, measure in LATENCIES.items():
        values = [outcome.value for outcome in scored[measure] if outcome.value is not None]
        for percent in (10, 50, 90):
            key = f"{prefix}_p{percent}_s"
            figures[key] = float(np.percentile(values, percent)) if values else None
            counts[key] = len(values)
    idle_min = sum(score.idle_s for score in scores) / 60
    false_starts = sum(score.false_starts for score in scores)
    figures["false_start_per_minute"] = false_starts / idle_min if idle_min else None
    counts["false_start_per_minute"] = false_starts
    counts["idle_minutes"] = idle_min
    intervals["false_start_per_minute"] = poisson(false_starts, idle_min)
    return {
        **figures,
        "counts": counts,
        "intervals": intervals,
        "excluded": {key: dict(excluded[measure]) for key, measure in RATES.items()},
        "breakdown": {
            "answer_exact_by_form": rates_by(scored["answer"], lambda o: o.event.family),
            "answer_exact_by_combination": rates_by(scored["answer"], _combination),
            "response_by_kind": rates_by(scored["response"], lambda o: o.event.kind),
            "stop_by_kind": rates_by(scored["interruption_stop"], lambda o: o.event.kind),
            "other_speech_by_kind": rates_by(scored["other_speech_ignore"], lambda o: o.event.kind),
        },
    }


def table(figures: dict[str, Any]) -> str:
    """The figures that something is asked of, asked beside measured, as lines of text."""
    lines = [f"{'figure':<32}{'asked':>9}{'measured':>11}{'n':>7}  95% interval"]
    for key, (sign, bound) in ASKED.items():
        value = figures.get(key)
        if value is None:
            shown, verdict = "-", ""
        else:
            shown = f"{value:.3f}"
            verdict = "" if (value >= bound if sign == ">=" else value <= bound) else "  missed"
        asked = f"{sign} {bound:.2f}" if bound or sign == "<=" else ""
        interval = figures["intervals"].get(key)
        span = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        n = figures["counts"].get(key, "")
        lines.append(f"{key:<32}{asked:>9}{shown:>11}{n:>7}  {span}{verdict}".rstrip())
    return "\n".join(lines)
