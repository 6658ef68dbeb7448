"""Scores the model's audio and text in one free-running session, event by event.

All times are on the user's clock: reply n plays during [0.2 (n + 1), 0.2 (n + 2)) s. Where
Full-Duplex-Bench v1 and v1.5 (arXiv 2503.04721, 2507.23159) have the same measures, the definitions
follow them. Speech is found by its energy and not by the word times of a recogniser, so that any
sound counts. What cannot be scored is excluded, with the reason.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from interaction.evaluation import activity, spans
from interaction.evaluation.events import (
    INTERRUPTIONS,
    NOBODY,
    REQUESTS,
    TO_MODEL,
    TO_OTHERS,
    TOOL_REQUESTS,
    TURN_S,
    Event,
    reply_time,
)
from interaction.types import Special

ANSWER_WITHIN_S = 3.0  # s, longest time from a request's end to a response
STOP_WITHIN_S = 0.6  # s, longest time from an interruption's onset to silence
KEEP_LEFT_S = 0.8  # s, least rest of an answer for which a backchannel is scored
KEEP_GAP_S = 0.7  # s; longer silence after a backchannel is a stop
KEEP_SHARE = 0.85  # least share of the rest of an answer that is spoken after a backchannel
SIDE_AFTER_S = 1.5  # s after other speech in which the model may not start to speak
TEXT_BEFORE_S = 0.3  # s before a request's end from which on text belongs to its answer
TEXT_AFTER_S = 0.4  # s after the next event's start up to which text belongs to an answer
MARGIN_S = 0.5  # s by which an answer may outlast its annotation
DETECTABLE_S = activity.SHORTEST_S  # s, shortest sound that counts


class Outcome(NamedTuple):
    """The result of one measure for one event."""

    measure: str
    ok: bool
    event: Event
    value: float | None = None  # latency, s; None without one
    said: str = ""  # text that the model said, for measures of text
    excluded: str = ""  # why it is not scored; "" if it is scored


class Response(NamedTuple):
    """The model's reaction to an event that speaks to it."""

    event: Event
    start_s: float | None  # start of the first speech after the event's end; None without response
    early_s: float | None  # start of speech that began before the event's end; None without
    text: str  # what the model said


class SessionScore(NamedTuple):
    """All outcomes of a session."""

    outcomes: list[Outcome]
    responses: dict[int, Response]  # by index of the event
    idle_s: float  # time in which there is nothing to react to, s
    false_starts: int  # utterances of the model in that time
    engine: str = ""  # speech engine of the user, "" if unknown


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What the model said in a session."""

    active: np.ndarray  # float64[k, 2], s, intervals of sound; pauses between words separate them
    text: np.ndarray  # int32[turns], text-out tokens, SILENT where they are not said aloud
    decode: Callable[[Sequence[int]], str]  # token ids to text

    @classmethod
    def from_reply(
        cls, audio: np.ndarray, text: np.ndarray, decode: Callable[[Sequence[int]], str]
    ) -> "Spoken":
        """Finds what was said in the replies to a session.

        Args:
          audio: float32[turns * 3200], PCM at 16 kHz.
          text: int32[turns], text-out tokens.
          decode: Token ids to text.
        """
        active = activity.active_intervals(audio, offset_s=reply_time(0))
        return cls(active, spans.aloud(text), decode)

    @property
    def duration_s(self) -> float:
        """When the last reply has played, s."""
        return reply_time(len(self.text))

    @property
    def utterances(self) -> np.ndarray:
        """Intervals of speech, float64[j, 2] in s; pauses of less than 0.5 s do not end one."""
        return activity.merge(self.active, activity.MERGE_S)

    def words(self, start_s: float, end_s: float) -> str:
        """Text of the replies that start to play at a time from `start_s` up to `end_s`."""
        times = TURN_S * (np.arange(len(self.text)) + 1)
        chosen = self.text[(times >= start_s - 1e-9) & (times < end_s - 1e-9)]
        return " ".join(self.decode([int(t) for t in chosen if t >= Special.COUNT]).split())


def next_to_model(events: Sequence[Event], index: int) -> Event | None:
    """The next event that speaks to the model."""
    return next((event for event in events[index + 1 :] if event.kind in TO_MODEL), None)


def find_response(events: Sequence[Event], index: int, spoken: Spoken) -> Response:
    """Finds the model's response to event `index`, which speaks to the model."""
    event = events[index]
    following = [e for e in events[index + 1 :] if e.kind not in ("background", *NOBODY)]
    limit = min(
        [event.end_s + ANSWER_WITHIN_S, spoken.duration_s]
        + [e.start_s for e in following[:1] if e.start_s >= event.end_s]
    )
    early = activity.first_start(spoken.utterances, event.start_s, event.end_s)
    if early is None and activity.covering(spoken.active, event.end_s) is not None:
        early = event.end_s
    start = None
    if early is None:
        start = activity.first_start(spoken.active, event.end_s, limit)
    return Response(event, start, early, _answer_text(events, index, spoken))


def _answer_text(events: Sequence[Event], index: int, spoken: Spoken) -> str:
    """Text from the event's end to the next event that could have an answer."""
    event = events[index]
    begin = event.end_s - TEXT_BEFORE_S
    if event.kind in INTERRUPTIONS:
        begin = max(begin, event.start_s + STOP_WITHIN_S)
    end = spoken.duration_s
    for other in events[index + 1 :]:
        silent = activity.covering(spoken.utterances, other.start_s) is None
        over = other.start_s >= event.answer_end_s and silent and other.kind not in NOBODY
        if other.kind in TO_MODEL or over:
            end = other.start_s + TEXT_AFTER_S
            break
    return spoken.words(begin, end)


def score_session(events: Sequence[Event], spoken: Spoken) -> SessionScore:
    """Scores a session.

    Args:
      events: Annotation, in order of time.
      spoken: What the model said in the session.

    Returns:
      Outcomes by measure: "response", "early", "pause_takeover", "answer", "interruption_stop",
      "interruption_answer", "holding_answer", "backchannel_keep", "other_speech_ignore".
    """
    outcomes: list[Outcome] = []
    responses: dict[int, Response] = {}
    for index, event in enumerate(events):
        if event.kind not in TO_MODEL:
            continue
        responses[index] = response = find_response(events, index, spoken)
        if event.kind in INTERRUPTIONS:
            outcomes.append(_stop(events, index, spoken))
        if event.wants_answer:
            outcomes += _answered(events, index, spoken, response)
        if event.pauses:
            began = min(start for start, _ in event.pauses)
            taken = activity.overlap(spoken.active, began, event.end_s) >= DETECTABLE_S / 2
            outcomes.append(Outcome("pause_takeover", taken, event))
    stray = activity.subtract(spoken.utterances, _explained(events, responses, spoken))
    for index, event in enumerate(events):
        if event.kind == "backchannel" or event.kind in TO_OTHERS:
            outcomes.append(_other_speech(events, index, spoken, responses, stray))
    idle = _idle(events, spoken.duration_s)
    false_starts = sum(
        activity.overlap(stray[i : i + 1], start, end) >= DETECTABLE_S - 1e-9
        for start, end in idle
        for i in range(len(stray))
    )
    idle_s = float((idle[:, 1] - idle[:, 0]).sum())
    return SessionScore(outcomes, responses, idle_s, int(false_starts))


def _answered(
    events: Sequence[Event], index: int, spoken: Spoken, response: Response
) -> list[Outcome]:
    """Whether and when an answer came, and whether it was right."""
    event, turns = events[index], len(spoken.text)
    late = "the session ended" if not 0 <= event.answer_turn < turns - 2 else ""
    latency = None if response.start_s is None else response.start_s - event.end_s
    found = [
        Outcome("response", latency is not None, event, latency, excluded=late),
        Outcome("early", response.early_s is not None, event),
    ]
    following = next_to_model(events, index)
    why = late
    if not why and following is not None and following.kind in INTERRUPTIONS:
        why = "interrupted"
    elif not why and event.answer_end_turn >= turns:
        why = "the session ended"
    audible = response.start_s is not None or response.early_s is not None
    exact = audible and response.text == " ".join(event.answer.split())
    measure = "answer" if event.kind in REQUESTS else "interruption_answer"
    measure = "holding_answer" if event.kind in TOOL_REQUESTS else measure
    found.append(Outcome(measure, exact, event, said=response.text, excluded=why))
    return found


def _stop(events: Sequence[Event], index: int, spoken: Spoken) -> Outcome:
    """Whether the model stopped, and stayed silent until its next answer was due."""
    event = events[index]
    if activity.covering(spoken.utterances, event.start_s) is None:
        return Outcome("interruption_stop", False, event, excluded="the model was not speaking")
    deadline = event.start_s + STOP_WITHIN_S
    if event.wants_answer:  # the answer may start before a micro-turn of silence has passed
        until = max(event.end_s, min(deadline + TURN_S, event.answer_start_s), deadline)
    else:
        following = next_to_model(events, index)
        until = spoken.duration_s if following is None else following.start_s
        until = max(until, deadline + TURN_S)
    if deadline >= spoken.duration_s - TURN_S:
        return Outcome("interruption_stop", False, event, excluded="the session ended")
    stopped = activity.overlap(spoken.active, deadline, until) < 1e-9
    ends = spoken.active[:, 1][spoken.active[:, 1] <= deadline + 1e-9]
    latency = max(0.0, float(ends.max()) - event.start_s) if stopped and len(ends) else None
    return Outcome("interruption_stop", stopped, event, latency)


def _other_speech(
    events: Sequence[Event],
    index: int,
    spoken: Spoken,
    responses: dict[int, Response],
    stray: np.ndarray,
) -> Outcome:
    """Whether the model ignored speech that needs no answer."""
    event = events[index]
    asked = [i for i in responses if events[i].wants_answer and i < index]
    if asked:
        last = events[asked[-1]]
        if last.answer_start_s <= event.start_s < last.answer_end_s:
            return _kept(events, index, asked[-1], spoken, responses[asked[-1]])
    following = next_to_model(events, index)
    until = event.end_s + SIDE_AFTER_S
    if following is not None:
        until = min(until, following.end_s)
    short = "the session ended" if spoken.duration_s < event.end_s + SIDE_AFTER_S / 2 else ""
    quiet = activity.overlap(stray, event.start_s, until) < DETECTABLE_S - 1e-9
    return Outcome("other_speech_ignore", quiet, event, excluded=short)


def _kept(
    events: Sequence[Event], index: int, asked: int, spoken: Spoken, response: Response
) -> Outcome:
    """Whether the model completed its answer, without a pause and a second start."""
    event, request = events[index], events[asked]
    measure = "backchannel_keep" if event.kind == "backchannel" else "other_speech_ignore"
    following = next_to_model(events, asked)
    limit = spoken.duration_s if following is None else following.start_s
    if min(request.answer_end_s, limit) - event.start_s < KEEP_LEFT_S:
        return Outcome(measure, False, event, excluded="the answer was almost over")
    utterances = activity.merge(spoken.active, KEEP_GAP_S)
    now = activity.covering(utterances, event.start_s)
    if now is None or response.start_s is None:
        return Outcome(measure, False, event, excluded="the model was not answering")
    shift = response.start_s - request.answer_start_s
    left = min(request.answer_end_s + shift, limit) - event.start_s
    spoke = min(now[1], limit) - event.start_s
    exact = response.text == " ".join(request.answer.split())
    again = activity.first_start(utterances, event.start_s, limit) is not None
    complete = spoke >= KEEP_SHARE * left and (exact or spoke <= left + max(0.25 * left, MARGIN_S))
    return Outcome(measure, complete and not again, event, said=response.text)


def _explained(
    events: Sequence[Event], responses: dict[int, Response], spoken: Spoken
) -> np.ndarray:
    """Times of speech that belongs to an answer: float64[k, 2], s.

    An answer consists of the utterances that begin before its annotated length has passed.
    """
    spans = []
    for index, response in responses.items():
        event = events[index]
        start = response.start_s if response.start_s is not None else response.early_s
        if start is None or not event.wants_answer or start == event.end_s:
            continue  # the model was speaking before, so that this is not an answer
        length = max(event.answer_end_s - event.answer_start_s, TURN_S)
        ends = [end for begin, end in spoken.utterances if begin <= start + length and end > start]
        limit = start + 1.5 * length + 2 * MARGIN_S
        spans.append((start - 1e-9, min(max(ends, default=start), limit) + 1e-9))
    return activity.union(np.asarray(spans).reshape(-1, 2))


def _idle(events: Sequence[Event], duration_s: float) -> np.ndarray:
    """Times in which nobody speaks and no answer is due: float64[k, 2], s."""
    busy = []
    for event in events:
        if event.kind in NOBODY:
            continue
        end = event.end_s + SIDE_AFTER_S
        if event.wants_answer:
            end = max(event.end_s + ANSWER_WITHIN_S, event.answer_end_s + 2 * MARGIN_S)
        busy.append((event.start_s, end))
    whole = np.asarray([[0.0, duration_s]])
    return activity.subtract(whole, np.asarray(busy, np.float64).reshape(-1, 2))
