"""Figures from the outcomes of many sessions, with counts and intervals, and their table."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

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
TARGETS: dict[str, tuple[str, float]] = {  # JSON key -> target of the figure
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
NO_TARGET = (
    "asr_word_accuracy_generated",
    "asr_word_accuracy_original",
    "transcript_word_accuracy",
)
BY_ENGINE = ("answer_exact_by_engine", "response_by_engine", "transcript_word_accuracy_by_engine")
UNKNOWN = "unknown"  # shown as the engine of users without a known voice


class Scored(Protocol):
    """An outcome that is right or wrong."""

    @property
    def ok(self) -> bool:
        """Whether it is right."""


_Some = TypeVar("_Some", bound=Scored)


def rate_of(outcomes: Sequence[Scored]) -> dict[str, Any]:
    """Rate, count and 95% interval (Wilson) of outcomes that are all scored."""
    n, ok = len(outcomes), sum(outcome.ok for outcome in outcomes)
    return {"rate": ok / n if n else None, "n": n, "interval": wilson(ok, n)}


def rates_by(outcomes: Sequence[_Some], key: Callable[[_Some], str]) -> dict[str, dict[str, Any]]:
    """Rates of the groups of outcomes that `key` forms, the largest group first."""
    groups: dict[str, list[_Some]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    return _rates_of(groups)


def _rates_of(groups: Mapping[str, Sequence[Scored]]) -> dict[str, dict[str, Any]]:
    """Rates of the groups that are not empty, the largest group first."""
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return {name: rate_of(group) for name, group in ordered if group}


def rates_by_session(
    scores: Sequence[SessionScore], measure: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Rates of groups of sessions by one measure, the largest group first.

    Args:
      scores: One for each session.
      measure: A measure of `score_session`.
      names: The group of each session.
    """
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for score, name in zip(scores, names, strict=True):
        groups[name] += [o for o in score.outcomes if o.measure == measure and not o.excluded]
    return _rates_of(groups)


def _combination(outcome: Outcome) -> str:
    return "held_out_combination" if outcome.event.held_out else "seen_combination"


def summarise(scores: Iterable[SessionScore]) -> dict[str, Any]:
    """Figures of a set of sessions.

    Args:
      scores: One for each session.

    Returns:
      A dict for JSON: each figure by its key, None where nothing could be scored. The details are
      under "counts", "intervals" (95%, Wilson for rates and Byar for false starts), "excluded"
      (counts by reason) and "breakdown" (rates by group).
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
        "breakdown": _breakdown(scores, scored),
    }


def _breakdown(
    scores: Sequence[SessionScore], scored: Mapping[str, Sequence[Outcome]]
) -> dict[str, dict[str, Any]]:
    """Rates by form, by kind and by the user's speech engine."""
    engines = [score.engine or UNKNOWN for score in scores]
    return {
        "answer_exact_by_form": rates_by(scored["answer"], lambda o: o.event.family),
        "answer_exact_by_combination": rates_by(scored["answer"], _combination),
        "response_by_kind": rates_by(scored["response"], lambda o: o.event.kind),
        "stop_by_kind": rates_by(scored["interruption_stop"], lambda o: o.event.kind),
        "other_speech_by_kind": rates_by(scored["other_speech_ignore"], lambda o: o.event.kind),
        "answer_exact_by_engine": rates_by_session(scores, "answer", engines),
        "response_by_engine": rates_by_session(scores, "response", engines),
    }


class Row(NamedTuple):
    """One figure of a table."""

    value: float | None
    n: int | str  # number of scored outcomes; "" where nothing is counted
    interval: tuple[float, float] | None
    target: tuple[str, float] | None = None

    @property
    def wanted(self) -> str:
        """The target as text."""
        return f"{self.target[0]} {self.target[1]:.2f}" if self.target else ""

    @property
    def measured(self) -> str:
        """Value, count and interval as text of a fixed width."""
        shown = "-" if self.value is None else f"{self.value:.3f}"
        span = f"[{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval else ""
        return f"{shown:>11}{self.n:>7}  {span:<14}"

    @property
    def missed(self) -> bool:
        """Whether the value misses the target."""
        if self.value is None or self.target is None:
            return False
        sign, bound = self.target
        return self.value < bound if sign == ">=" else self.value > bound


def rows(figures: dict[str, Any], groups: Sequence[str] = BY_ENGINE) -> dict[str, Row]:
    """The rows of a table by their names.

    Args:
      figures: From `summarise`.
      groups: Keys of the breakdown; each of their groups is a row.
    """
    counts, intervals = figures["counts"], figures["intervals"]
    found = {
        key: Row(figures.get(key), counts.get(key, ""), intervals.get(key), TARGETS.get(key))
        for key in (*TARGETS, *NO_TARGET)
    }
    for key in groups:
        for name, group in figures["breakdown"].get(key, {}).items():
            row = Row(group["rate"], group["n"], group["interval"])
            found[f"{key.split('_by_')[0]}, {name}"] = row
    return found


def table(figures: dict[str, Any], groups: Sequence[str] = BY_ENGINE) -> str:
    """The figures as lines of text, with targets beside measured values; see `rows`."""
    lines = [f"{'figure':<40}{'target':>8}{'measured':>11}{'n':>7}  95% interval"]
    for name, row in rows(figures, groups).items():
        verdict = "  missed" if row.missed else ""
        lines.append(f"{name:<40}{row.wanted:>8}{row.measured}{verdict}".rstrip())
    return "\n".join(lines)
