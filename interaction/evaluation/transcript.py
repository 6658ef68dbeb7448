"""A conversation for people to read: words with their times, and who said what and when."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from interaction.evaluation import activity
from interaction.evaluation.delegation_history import Delegation
from interaction.evaluation.events import NOBODY, TURN_S, Event, reply_time
from interaction.evaluation.lanes import Lane, make_lanes, summary
from interaction.evaluation.rollout import Rollout, to_float
from interaction.evaluation.scoring import Spoken, score_session
from interaction.evaluation.utterances import attribute, results_of
from interaction.types import Special

USER_MERGE_S = 0.6  # s; shorter silence does not end a user's utterance (Full-Duplex-Bench v1.5)
REPLY_WITHIN_S = 3.0  # s; a later utterance of the model is no answer


class Word(NamedTuple):
    """A word, and when its first token was emitted."""

    time_s: float
    text: str


class Row(NamedTuple):
    """One utterance of the user or the model, or one delegation."""

    start_s: float
    end_s: float
    who: str  # "user", "model", or "behind" for the background model
    kind: str  # kind of the user's event, "" without annotation
    text: str
    note: str  # a remark, such as "answered after 0.31 s"


class Mark(NamedTuple):
    """A measured delay."""

    kind: str  # "response" or "stop"
    start_s: float
    end_s: float


class SessionView(NamedTuple):
    """All that a picture or a table of one session shows; times on the user's clock."""

    user: np.ndarray  # float32[n], PCM
    model: np.ndarray  # float32[n], PCM, delayed to when it plays
    user_words: list[Word]  # the model's transcript of the user
    model_words: list[Word]
    events: list[Event]  # [] without annotation
    marks: list[Mark]
    rows: list[Row]
    step_s: np.ndarray  # float64[turns], wall time of each step, s
    lanes: list[Lane]  # [] without delegations


def words_over_time(
    tokens: Sequence[int], times: Sequence[float], decode: Callable[[Sequence[int]], str]
) -> list[Word]:
    """Groups tokens into words.

    Args:
      tokens: Token ids in order; special tokens end a word.
      times: Time of each token, s.
      decode: Token ids to text, with spaces between words.
    """
    words: list[Word] = []
    run: list[int] = []
    for token, time in zip(tokens, times, strict=True):
        if token in (Special.SILENT, Special.CANCEL):
            run = []
        if token < Special.COUNT:
            continue
        before, after = decode(run), decode([*run, int(token)])
        run.append(int(token))
        if run[:-1] and after.startswith(before) and " " not in after[len(before) :]:
            words[-1] = words[-1]._replace(text=after.split()[-1] if after.split() else "")
        else:
            words.append(Word(float(time), after.split()[-1] if after.split() else ""))
    return [word for word in words if word.text]


def transcript_words(
    user_transcript: np.ndarray, decode: Callable[[Sequence[int]], str]
) -> list[Word]:
    """The words of the user transcript.

    Args:
      user_transcript: int32[turns, slots], NONE where there is no token.
      decode: Token ids to text.

    Returns:
      The words, each at the end of its slot.
    """
    turns, slots = user_transcript.shape
    times = TURN_S * (np.arange(turns)[:, None] + (np.arange(slots) + 1) / slots)
    words = user_transcript >= Special.COUNT
    return words_over_time(user_transcript[words].tolist(), times[words].tolist(), decode)


def _text_between(words: Sequence[Word], start_s: float, end_s: float) -> str:
    """The words whose time is at least `start_s` and below `end_s`."""
    return " ".join(word.text for word in words if start_s <= word.time_s < end_s)


def converse(
    user: np.ndarray,
    replies: Rollout,
    decode: Callable[[Sequence[int]], str],
    events: Sequence[Event] = (),
    delegations: Sequence[Delegation] = (),
) -> SessionView:
    """Puts both sides of a session on one clock and measures its delays.

    Args:
      user: PCM, int16[n] or float32[n] at 16 kHz.
      replies: The replies of the model.
      decode: Token ids to text.
      events: Annotation of the user's side. Without it, delays are measured from the energy of the
        user's signal, which takes noise for speech.
      delegations: The delegations of the model, from `delegation_history.read_delegations`.
    """
    turns, events = len(replies.text), list(events)
    lead = round(reply_time(0) * 16_000)
    model = np.concatenate([np.zeros(lead, np.float32), replies.audio])
    user = np.pad(to_float(user), (0, max(0, len(model) - len(user))))[: len(model)]
    spoken = Spoken.from_reply(replies.audio, replies.text, decode)
    said = words_over_time(spoken.text.tolist(), [reply_time(n) for n in range(turns)], decode)
    user_transcript = transcript_words(replies.user_transcript, decode)
    marks = _annotated_marks(events, spoken) if events else _measured_marks(user, spoken)
    lanes = _lanes(spoken, events, delegations)
    rows = (
        _user_rows(user, user_transcript, events)
        + _model_rows(spoken, said, marks)
        + _lane_rows(lanes)
    )
    rows.sort(key=lambda row: row.start_s)
    return SessionView(
        user, model, user_transcript, said, events, marks, rows, replies.step_s, lanes
    )


def _lanes(
    spoken: Spoken, events: Sequence[Event], delegations: Sequence[Delegation]
) -> list[Lane]:
    """The lanes of the delegations."""
    results = results_of(delegations, len(spoken.text), lambda one: spoken.decode(one.result))
    said = attribute(spoken, events, results)
    return make_lanes(delegations, said, spoken.duration_s)


def _lane_rows(lanes: Sequence[Lane]) -> list[Row]:
    """One row for each delegation."""
    return [
        Row(one.start_s, one.end_s, "behind", "delegation", one.requests[0].text, summary(one))
        for one in lanes
    ]


def _annotated_marks(events: Sequence[Event], spoken: Spoken) -> list[Mark]:
    """The delays of responses and stops, by the annotated events."""
    score = score_session(events, spoken)
    marks = [
        Mark("response", response.event.end_s, response.start_s)
        for response in score.responses.values()
        if response.start_s is not None and response.event.wants_answer
    ]
    marks += [
        Mark("stop", outcome.event.start_s, outcome.event.start_s + outcome.value)
        for outcome in score.outcomes
        if outcome.measure == "interruption_stop" and outcome.value is not None
    ]
    return sorted(marks, key=lambda mark: mark.start_s)


def _measured_marks(user: np.ndarray, spoken: Spoken) -> list[Mark]:
    """The delays of responses, from the energy of both sides without annotation."""
    talk = activity.merge(activity.active_intervals(user), USER_MERGE_S)
    marks = []
    for start, _ in spoken.utterances:
        ended = talk[talk[:, 1] <= start, 1]
        if len(ended) and start - ended[-1] <= REPLY_WITHIN_S:
            marks.append(Mark("response", float(ended[-1]), float(start)))
    return marks


def _user_rows(
    user: np.ndarray, user_transcript: Sequence[Word], events: Sequence[Event]
) -> list[Row]:
    """The events of the user's side, or without annotation the user's utterances."""
    if events:
        return [
            Row(e.start_s, e.end_s, "user", e.kind, e.text, "")
            for e in events
            if e.kind not in NOBODY
        ]
    talk = activity.merge(activity.active_intervals(user), USER_MERGE_S)
    rows = []
    for start, end in talk:
        text = _text_between(user_transcript, start, end + 2 * TURN_S)
        rows.append(Row(start, end, "user", "", text, "as transcribed"))
    return rows


def _model_rows(spoken: Spoken, said: Sequence[Word], marks: Sequence[Mark]) -> list[Row]:
    """The model's utterances; where a new answer starts inside one, it is split."""
    starts = [mark.end_s for mark in marks if mark.kind == "response"]
    rows = []
    for low, high in spoken.utterances:
        cuts = [low, *(s for s in starts if low + 1e-6 < s < high), high]
        for start, end in itertools.pairwise(cuts):
            sounds = spoken.active[(spoken.active[:, 0] < end) & (spoken.active[:, 1] > start)]
            notes = []
            for mark in marks:
                delay = mark.end_s - mark.start_s
                if mark.kind == "response" and abs(mark.end_s - start) < 1e-6:
                    notes.append(f"answered after {delay:.2f} s")
                if mark.kind == "stop" and start < mark.end_s <= sounds[-1, 1] + 1e-6:
                    notes.append(f"stopped within {delay:.2f} s")
            text = _text_between(said, start - TURN_S, end - TURN_S / 4)
            rows.append(Row(start, float(sounds[-1, 1]), "model", "", text, ", ".join(notes)))
    return rows


def transcript(rows: Sequence[Row]) -> str:
    """The rows as lines of text."""
    lines = [f"{'from':>6} {'to':>6}  {'who':<8}{'event':<22}text"]
    for row in rows:
        kind = row.kind.replace("_", " ")
        note = f"  [{row.note}]" if row.note else ""
        lines.append(f"{row.start_s:6.2f} {row.end_s:6.2f}  {row.who:<8}{kind:<22}{row.text}{note}")
    return "\n".join(lines)
