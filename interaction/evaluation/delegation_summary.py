"""Figures from the scores of many conversations with delegations, and their table."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from interaction.evaluation.delegation import DelegationScore, Judged
from interaction.evaluation.joined import PLACES, place_name
from interaction.evaluation.statistics import wilson
from interaction.evaluation.summary import Row, rate_of, rates_by

RATES = {  # JSON key -> measure
    "delegation_recall": "recall",
    "request_exact": "request",
    "result_spoken_exact": "result",
    "answers_while_waiting_exact": "waiting",
    "cancel_rate": "cancel",
    "update_exact": "update",
    "result_over_user_speech_rate": "over_speech",
}
TIMES = {"holding_reply": "holding", "result_latency": "latency"}  # prefix of the key -> measure
SHOWN_BY_GROUP = ("delegation_recall", "request_exact", "result_spoken_exact")
EXAMPLES = 20  # most mistakes of one measure in the figures


def summarise_delegations(scores: Iterable[DelegationScore]) -> dict[str, Any]:
    """Figures of a set of conversations.

    Args:
      scores: One for each conversation.

    Returns:
      A dict for JSON: each figure by its key, None where nothing could be scored, and
      "delegations", the number of spans that belong to a tool request. The details are under
      "counts", "intervals" (95%, Wilson), "excluded" (counts by reason), "by_tool_request" (rates)
      and "mistakes" (examples).
    """
    scores = list(scores)
    scored: dict[str, list[Judged]] = defaultdict(list)
    excluded: dict[str, Counter] = defaultdict(Counter)
    for one in (judged for score in scores for judged in score.judged):
        if one.excluded:
            excluded[one.measure][one.excluded] += 1
        else:
            scored[one.measure].append(one)
    matched, spans = (sum(getattr(s, name) for s in scores) for name in ("matched", "spans"))
    figures: dict[str, Any] = {"delegations": matched}
    figures["delegation_precision"] = matched / spans if spans else None
    counts: dict[str, Any] = {"sessions": len(scores), "delegation_precision": spans}
    intervals: dict[str, Any] = {"delegation_precision": wilson(matched, spans)}
    for key, measure in RATES.items():
        rate = rate_of(scored[measure])
        figures[key], counts[key], intervals[key] = rate["rate"], rate["n"], rate["interval"]
    for prefix, measure in TIMES.items():
        values = [one.value for one in scored[measure] if one.value is not None]
        for percent in (10, 50, 90):
            key = f"{prefix}_p{percent}_s"
            figures[key] = float(np.percentile(values, percent)) if values else None
            counts[key] = len(values)
    measures = RATES | TIMES
    return {
        **figures,
        "counts": counts,
        "intervals": intervals,
        "excluded": {key: dict(excluded[measure]) for key, measure in measures.items()},
        "by_tool_request": {
            key: rates_by(scored[measure], lambda one: one.tool_request)
            for key, measure in RATES.items()
        },
        "mistakes": {
            key: _mistakes(scored[measure], key == "result_over_user_speech_rate")
            for key, measure in RATES.items()
        },
    }


def summarise_joined(scores: Iterable[DelegationScore]) -> dict[str, Any]:
    """Further figures of long conversations, which join the sessions of several users.

    Args:
      scores: One for each long conversation.

    Returns:
      "by_place", rates of each measure by the third of the conversation in which the request was
      made; and "by_wait", rates of results that are due in the part of the request, as in a fresh
      conversation, and of results that are due later, such as those of timers of minutes.
    """
    scored: dict[str, list[Judged]] = defaultdict(list)
    for one in (judged for score in scores for judged in score.judged if not judged.excluded):
        scored[one.measure].append(one)
    by_place = {}
    for key, measure in RATES.items():
        found = rates_by(scored[measure], lambda one: place_name(one.place))
        by_place[key] = {place: found[place] for place in PLACES if place in found}
    by_wait = rates_by(scored["result"], lambda one: "due_later" if one.later else "due_in_part")
    return {"by_place": by_place, "by_wait": {"result_spoken_exact": by_wait}}


def _mistakes(scored: Sequence[Judged], wrong: bool) -> list[dict[str, str]]:
    """Some outcomes that are mistakes; `wrong` is the value of `ok` in a mistake."""
    found = [one for one in scored if one.ok == wrong][:EXAMPLES]
    return [{name: getattr(one, name) for name in ("asked", "wanted", "said")} for one in found]


def delegation_table(figures: dict[str, Any]) -> str:
    """The figures as lines of text, also those of `summarise_joined` if there are any."""
    lines = [f"{'figure':<40}{'measured':>11}{'n':>7}  95% interval"]
    keys = ["delegation_precision", *RATES]
    keys += [f"{prefix}_p{percent}_s" for prefix in TIMES for percent in (50, 90)]
    rows = {
        key: Row(figures[key], figures["counts"][key], figures["intervals"].get(key))
        for key in keys
    }
    for kind in ("by_place", "by_wait"):
        for key in SHOWN_BY_GROUP:
            for name, group in figures.get(kind, {}).get(key, {}).items():
                row = Row(group["rate"], group["n"], group["interval"])
                rows[f"{key}, {name.replace('_', ' ')}"] = row
    lines += [f"{name:<40}{row.measured}".rstrip() for name, row in rows.items()]
    for key, reasons in figures["excluded"].items():
        lines += [f"not scored in {key}: {n} ({reason})" for reason, n in reasons.items()]
    for key, mistakes in figures["mistakes"].items():
        lines += [
            f"{key}: {one['asked']!r}: {one['wanted']!r}, got {one['said']!r}"
            for one in mistakes[:3]
        ]
    return "\n".join(lines)
