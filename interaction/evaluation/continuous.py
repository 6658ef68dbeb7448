"""Compares many requests in one long session with the same requests in fresh sessions.

Audio and events are the same in both. A long session joins the sessions of many users, which are
its parts, and the model keeps its state over all of them. In fresh sessions the model starts with
an empty state for each user.
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
    """Results in long sessions and in fresh ones."""

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
      make_record: See `evaluate`. Every answer has to end within its session.
      sessions: Number of parts of all long sessions.
      joined: Number of parts of one long session.
      seed: See `evaluate`.
      batch: See `evaluate`. Long sessions use fewer rows if there are fewer of them.
      on_batch: Called with the number of finished sessions; the last number is 2 * sessions.

    Returns:
      Both evaluations. Their `breakdown` has also the keys of `BY_PLACE`: rates by the place of a
      part in its long session.
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
    """Rates in the first, middle and last third of long sessions.

    Args:
      scores: One for each part, in order within a long session.
      measure: A measure of `score_session`.
      joined: Number of parts of one long session.

    Returns:
      Rate, count and interval by the name of the third, in order of time.
    """
    names = [place_name((index % joined + 0.5) / joined) for index in range(len(scores))]
    found = rates_by_session(scores, measure, names)
    return {place: found[place] for place in PLACES if place in found}


def count_pairs(
    continuous: Sequence[SessionScore], fresh: Sequence[SessionScore]
) -> dict[str, int]:
    """Counts the answers that are right in both, in only one of the two, and in neither."""
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
      figures: "continuous" and "fresh", each from `summarise`, and "answers" from `count_pairs`.
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
