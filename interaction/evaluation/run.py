"""Free-running evaluation of a model on stored sessions: replies, scores and figures."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.data.stored_session import StoredSession
from interaction.evaluation import activity
from interaction.evaluation.events import TURN_S, parse_events, read_engine
from interaction.evaluation.joined import cut_replies, join_users
from interaction.evaluation.recognizer import Clip
from interaction.evaluation.rollout import TURN, Listener, Rollout, rollout, to_float
from interaction.evaluation.scoring import SessionScore, Spoken, score_session
from interaction.evaluation.statistics import word_accuracy
from interaction.evaluation.summary import UNKNOWN, summarise
from interaction.types import Special

CLIP_MARGIN_S = 0.05  # s before and after a generated answer that its clip has too


class Evaluation(NamedTuple):
    """Results of an evaluation."""

    figures: dict[str, Any]  # from `summarise`, with "transcript_word_accuracy"
    clips: list[Clip]  # right answers, as the model and as the speech engine say them
    scores: list[SessionScore]


def evaluate(
    model: Listener,
    make_record: Callable[[int], StoredSession],
    sessions: int,
    seed: int,
    batch: int = 8,
    on_batch: Callable[[int], object] | None = None,
    joined: int = 1,
) -> Evaluation:
    """Plays users to a model, and scores its replies.

    With `joined` above 1 the model hears so many users one after another, and keeps its state. The
    replies are then cut where the next user begins, and those to each user are scored by
    themselves, so that the scored events do not depend on `joined`.

    Args:
      model: From `interaction.load`.
      make_record: Gives session i, with the fields "user" and "model" int16[turns * 3200], "text"
        int32[turns], "user_transcript" int32[turns, slots] and "meta", see `stored_session`.
      sessions: Number of sessions.
      seed: Row i samples with a seed that is made of this one and i.
      batch: Rows that run together. The last batch is filled up with copies of its first row.
      on_batch: Called with the number of finished sessions.
      joined: Number of sessions that one row hears, one after another.

    Raises:
      ValueError: A number is below 1, `sessions` is no multiple of `joined`, or the meta of a
        session cannot be read.
    """
    if min(sessions, batch, joined) < 1 or sessions % joined:
        raise ValueError(
            f"sessions, batch, joined: got {sessions}, {batch}, {joined}, wanted at least 1 each "
            "and sessions a multiple of joined; change sessions"
        )
    found, rows = _Found(model), sessions // joined
    for first in range(0, rows, batch):
        count = min(batch, rows - first)
        starts = range(first * joined, (first + count) * joined, joined)
        groups = [[make_record(start + part) for part in range(joined)] for start in starts]
        users = [join_users([record["user"] for record in group]) for group in groups]
        seeds = [_row_seed(seed, row) for row in range(first, first + batch)]
        rolled = rollout(model, users + users[:1] * (batch - count), seeds)[:count]
        for group, replies in zip(groups, rolled, strict=True):
            turns = [-(-len(record["user"]) // TURN) for record in group]
            for record, part in zip(group, cut_replies(replies, turns), strict=True):
                found.add(record, part)
        if on_batch is not None:
            on_batch((first + count) * joined)
    return found.evaluation()


def _row_seed(seed: int, row: int) -> int:
    return int(np.random.SeedSequence([seed, row]).generate_state(1)[0]) % 2**31


@dataclasses.dataclass
class _Found:
    """Results of the sessions so far."""

    model: Listener
    scores: list[SessionScore] = dataclasses.field(default_factory=list)
    clips: list[Clip] = dataclasses.field(default_factory=list)
    transcripts: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # wanted, got

    def add(self, record: StoredSession, replies: Rollout) -> None:
        """Scores the replies to one user."""
        spoken = Spoken.from_reply(replies.audio, replies.text, self.model.decode)
        score = score_session(parse_events(record["meta"]), spoken)
        self.scores.append(score._replace(engine=read_engine(record["meta"])))
        self.clips += answer_clips(record, replies, spoken, score)
        self.transcripts.append(
            (self._words(record["user_transcript"]), self._words(replies.user_transcript))
        )

    def evaluation(self) -> Evaluation:
        """The figures of all sessions."""
        figures = summarise(self.scores)
        whole = self._accuracy(self.transcripts)
        figures["transcript_word_accuracy"] = whole["rate"]
        figures["counts"]["transcript_word_accuracy"] = whole["n"]
        engines: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for score, pair in zip(self.scores, self.transcripts, strict=True):
            engines[score.engine or UNKNOWN].append(pair)
        found = {engine: self._accuracy(pairs) for engine, pairs in engines.items()}
        figures["breakdown"]["transcript_word_accuracy_by_engine"] = {
            engine: one for engine, one in found.items() if one["n"]
        }
        return Evaluation(figures, self.clips, self.scores)

    def _words(self, ids: np.ndarray) -> str:
        return self.model.decode([int(i) for i in np.ravel(ids) if i >= Special.COUNT])

    @staticmethod
    def _accuracy(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Word accuracy and number of words. Without interval: words are not independent."""
        wanted, got = map(list, zip(*pairs, strict=True))
        words = sum(len(sentence.split()) for sentence in wanted)
        return {"rate": word_accuracy(wanted, got), "n": words, "interval": None}


def answer_clips(
    record: StoredSession, replies: Rollout, spoken: Spoken, score: SessionScore
) -> list[Clip]:
    """Cuts out the right and complete answers, as the model and as the speech engine say them.

    Only the first utterance of a response is taken, so that a pause inside an answer costs words.

    Args:
      record: The session, with "model" int16[turns * 3200].
      replies: The model's replies to it.
      spoken: What the model said.
      score: Its score.

    Returns:
      Clips of PCM float32[n] at 16 kHz.
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
    """Picks clips in order, and repeats a text only after all texts came once."""
    seen: dict[str, int] = {}
    ranked = []
    for index, clip in enumerate(clips):
        seen[clip.text] = seen.get(clip.text, 0) + 1
        ranked.append((seen[clip.text], index))
    return [clips[index] for _, index in sorted(ranked)[:count]]
