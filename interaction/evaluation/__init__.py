"""Scores free-running conversations, with pure functions of PCM, text tokens and annotations."""

from interaction.evaluation.events import Event, parse_events
from interaction.evaluation.rollout import Rollout, rollout
from interaction.evaluation.scoring import Outcome, SessionScore, Spoken, score_session
from interaction.evaluation.summary import TARGETS, summarise, table

__all__ = [
    "TARGETS",
    "Event",
    "Outcome",
    "Rollout",
    "SessionScore",
    "Spoken",
    "parse_events",
    "rollout",
    "score_session",
    "summarise",
    "table",
]
