"""Compares many requests in one long session with the same requests in fresh sessions.

Both are the same audio and the same events. In the long session one user after another speaks to a
model that is never started anew; in the fresh sessions the model starts anew for each of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from interaction.data.stored_session import StoredSession
from interaction.evaluation.joined import PLACES, place_name
from interaction.evaluation.rollout import Listener
from interaction.evaluation.run import Evaluation, evaluate
from interaction.evaluation.scoring import SessionScore
from interaction.evaluation.summary import BY_ENGINE, rates_by_session, rows

BY_PLACE = ("answer_exact_by_place", "response_by_place")
MEASURES = {"answer_exact_by_place": "answer", "response_by_place": "response"}


class Compared(NamedTuple):
    """What was found in long sessions, and beside it in fresh ones."""

    continuous: Evaluation
    fresh: Evaluation
    answers: dict[str, int]  # see `count_pairs`


def compare_continuous(
    model: Listener,
    make_record: Callable[[int], StoredSession],
    sessions: int,
    joined: int,
    seed: int,
    batch: int = 8,
    on_batch: Callable[[int], object] | None = None,
) -> Compared:
    """Evaluates a model on long sessions, and on their parts as fresh sessions.

    Args:
      model: See `evaluate`.
      make_record: See `evaluate`; every answer has to end within its session, whatever follows.
      sessions: Parts of all long sessions together.
      joined: Parts of one long session.
      seed: See `evaluate`.
      batch: See `evaluate`; no more rows than there are long sessions are used for these.
      on_batch: Called with the number of sessions that are done, of twice as many.

    Returns:
      Both evaluations; `breakdown` has the keys of `BY_PLACE` as well, rates by the place that a
      part has in its long session.
    """
    report = on_batch or (lambda done: None)
    rows_of_long = min(batch, max(sessions // joined, 1))
    long = evaluate(model, make_record, sessions, seed, rows_of_long, report, joined)
    fresh = evaluate(model, make_record, sessions, seed, batch, lambda d: report(sessions + d))
    for one in (long, fresh):
        one.figures["breakdown"] |= {
            key: rates_by_place(one.scores, measure, joined) for key, measure in MEASURES.items()
        }
    return Compared(long, fresh, count_pairs(long.scores, fresh.scores))


def rates_by_place(
    scores: Sequence[SessionScore], measure: str, joined: int
) -> dict[str, dict[str, Any]]:
    """Rates of the thirds of long sessions, in order of time.

    Args:
      scores: One for each part, those of a long session in order.
      measure: Of `score_session`.
      joined: Parts of one long session.
    """
    names = [place_name((index % joined + 0.5) / joined) for index in range(len(scores))]
    found = rates_by_session(scores, measure, names)
    return {place: found[place] for place in PLACES if place in found}


def count_pairs(
    continuous: Sequence[SessionScore], fresh: Sequence[SessionScore]
) -> dict[str, int]:
    """Counts answers that were right in both, in one of the two alone, and in neither."""
    counts = {"both": 0, "continuous_only": 0, "fresh_only": 0, "neither": 0}
    for pair in zip(continuous, fresh, strict=True):
        long, alone = (
            [one.ok for one in score.outcomes if one.measure == "answer" and not one.excluded]
            for score in pair
        )
        for first, second in zip(long, alone, strict=True):
            only = "continuous_only" if first else "fresh_only"
            counts[only if first != second else "both" if first else "neither"] += 1
    return counts


def continuous_table(figures: dict[str, Any]) -> str:
    """Both sets of figures side by side, as lines of text.

    Args:
      figures: "continuous" and "fresh", each as `summarise` returns it, and "answers".
    """
    half = f"{'n':>7}  {'95% interval':<14}"
    head = f"{'figure':<40}{'target':>8}{'continuous':>11}{half}{'fresh':>11}{half}"
    lines: list[str] = [head.rstrip()]
    long, fresh = (rows(figures[key], (*BY_PLACE, *BY_ENGINE)) for key in ("continuous", "fresh"))
    for name, row in long.items():
        beside = fresh[name].measured if name in fresh else ""
        lines.append(f"{name:<40}{row.wanted:>8}{row.measured}{beside}".rstrip())
    shown = [f"{key.replace('_', ' ')} {count}" for key, count in figures["answers"].items()]
    return "\n".join([*lines, f"answers right in: {', '.join(shown)}"])
