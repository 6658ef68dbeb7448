"""Free-running evaluation of a model on session records: rollouts, scores, figures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.evaluation import activity
from interaction.evaluation.events import TURN_S, parse_events
from interaction.evaluation.recognizer import Clip
from interaction.evaluation.rollout import TURN, Listener, Rollout, rollout, to_float
from interaction.evaluation.scoring import SessionScore, Spoken, score_session
from interaction.evaluation.statistics import word_accuracy
from interaction.evaluation.summary import summarise
from interaction.types import Special

StoredSession = dict[str, Any]
CLIP_MARGIN_S = 0.05  # kept around a generated answer


class Evaluation(NamedTuple):
    """What an evaluation found."""

    figures: dict[str, Any]  # as `summarise` returns it, with "heard_word_accuracy"
    clips: list[Clip]  # right answers, as generated and as the engine says them
    scores: list[SessionScore]


def evaluate(
    model: Listener,
    make_record: Callable[[int], StoredSession],
    sessions: int,
    seed: int,
    batch: int = 8,
    on_batch: Callable[[int], object] | None = None,
) -> Evaluation:
    """Lets a model listen to `sessions` users, `batch` at once, and scores what it did.

    Args:
      model: as returned by `interaction.load`.
      make_record: gives the record of session i: "user" and "model" int16[turns * 3200], "text"
        int32[turns], "heard" int32[turns, slots], "meta" a JSON string.
      sessions: how many.
      seed: session i samples with a seed made of this and i.
      batch: rows that stream together; the last batch is filled up by repeating its first row.
      on_batch: called with the number of sessions that are done.

    Raises:
      ValueError: if `sessions` or `batch` is below 1, or a record's meta cannot be read.
    """
    if sessions < 1 or batch < 1:
        raise ValueError(
            f"sessions, batch: got {sessions}, {batch}, wanted at least 1 each; raise them"
        )
    scores: list[SessionScore] = []
    clips: list[Clip] = []
    transcripts: list[tuple[str, str]] = []
    for first in range(0, sessions, batch):
        count = min(batch, sessions - first)
        records = [make_record(index) for index in range(first, first + count)]
        fill = records + [records[0]] * (batch - count)
        seeds = [
            int(np.random.SeedSequence([seed, first + row]).generate_state(1)[0]) % 2**31
            for row in range(batch)
        ]
        rolled = rollout(model, [record["user"] for record in fill], seeds)[:count]
        for record, replies in zip(records, rolled, strict=True):
            spoken = Spoken.from_reply(replies.audio, replies.text, model.decode)
            score = score_session(parse_events(record["meta"]), spoken)
            scores.append(score)
            clips += answer_clips(record, replies, spoken, score)
            transcripts.append(
                (_words(record["user_transcript"], model), _words(replies.user_transcript, model))
            )
        if on_batch is not None:
            on_batch(first + count)
    figures = summarise(scores)
    figures["transcript_word_accuracy"] = word_accuracy(*map(list, zip(*transcripts, strict=True)))
    return Evaluation(figures, clips, scores)


def _words(ids: np.ndarray, model: Listener) -> str:
    return model.decode([int(i) for i in np.ravel(ids) if i >= Special.COUNT])


def answer_clips(
    record: StoredSession, replies: Rollout, spoken: Spoken, score: SessionScore
) -> list[Clip]:
    """Cuts out right and whole answers: float32 PCM as generated and as in the record.

    Only the first utterance of a response counts, so a pause inside an answer costs words.
    """
    original = to_float(record["model"])
    starts = {id(response.event): response.start_s for response in score.responses.values()}
    clips = []
    for outcome in score.outcomes:
        if outcome.excluded or not outcome.ok or not outcome.measure.endswith("answer"):
            continue
        start = starts[id(outcome.event)]
        span = None if start is None else activity.covering(spoken.utterances, start)
        if start is None or span is None:
            continue
        low = max(0, round((start - TURN_S - CLIP_MARGIN_S) * 16_000))
        high = round((span[1] - TURN_S + CLIP_MARGIN_S) * 16_000)
        event = outcome.event
        clips.append(
            Clip(
                outcome.said,
                replies.audio[low:high],
                original[event.answer_turn * TURN : event.answer_end_turn * TURN],
            )
        )
    return clips


def choose_clips(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Picks clips in order, each text once before any text twice."""
    seen: dict[str, int] = {}
    ranked = []
    for index, clip in enumerate(clips):
        seen[clip.text] = seen.get(clip.text, 0) + 1
        ranked.append((seen[clip.text], index))
    return [clips[index] for _, index in sorted(ranked)[:count]]
