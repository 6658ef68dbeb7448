"""Scores recorded conversations with tool requests, which the model delegates.

Times are on the user's clock, as in `scoring`: reply n plays from 0.2 (n + 1) s on. What cannot be
scored is excluded, with the reason. The measures are

- delegation_recall: share of the tool requests that the model delegates: it opens a complete
  `<delegate>` span between 0.3 s before and 4 s after the request's end, and before the user speaks
  to it again.
- delegation_precision: share of the complete `<delegate>` spans that belong to a tool request; a
  second span for the same request is wrong.
- request_exact: share of the spans that belong to a tool request without later corrections whose
  words are exactly those of the true request.
- result_spoken_exact: share of the tool requests without cancellation whose result the model says
  exactly. What it says after the result's first word arrived, apart from answers to other requests,
  has to be word for word the true result of the corrected request, and audible. The last call has
  to be the true one, because the result of a timer does not tell how long it ran. A request that
  was not delegated, or whose result never came, is wrong.
- holding_reply: time from the request's end to the first sound of the holding reply.
- result_latency: time from the reply that closed the span, or the span of its last update, to the
  first sound of the result, minus the time of the tools; only where nobody else speaks and no other
  answer is given in between.
- answers_while_waiting_exact: share of the other requests, with answers due while a delegation
  runs, whose answer has exactly the annotated words and is audible.
- cancel_rate: share of the cancellations after which `<cancel>` drops the delegation of the tool
  request within 3 s, and its result is not said. If its result had arrived before, nothing may be
  dropped, and the model has to say that this did not work. It is wrong if the request was not
  delegated.
- update_exact: share of the corrections whose corrected result the model says exactly, as above,
  also if it had said the result before the correction.
- result_over_user_speech_rate: share of the results whose first sound plays while the user speaks,
  to the model or to somebody else; pauses inside the user's sentence count as speech.

A result or an answer may consist of several utterances. An incomplete one whose words so far are
right is excluded if the user spoke to the model in it or if the recording ended. Whatever the model
says, it is excluded if the annotation has an interruption of the answer, or if the annotation shows
that the recording is too short for it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.background.delegations import SORRY
from interaction.evaluation.delegation_history import Delegation
from interaction.evaluation.events import (
    INTERRUPTIONS,
    NOBODY,
    REQUESTS,
    TO_MODEL,
    Event,
    reply_time,
)
from interaction.evaluation.scoring import TEXT_BEFORE_S, Spoken, find_response, next_to_model
from interaction.evaluation.spans import Span, read_spans
from interaction.evaluation.utterances import Result, Said, attribute, results_of
from interaction.types import Special

OPENS_WITHIN_S = 4.0  # s, longest time from a tool request's end to its span
CANCELS_WITHIN_S = 3.0  # s, longest time from a cancellation's end to `<cancel>`
DELEGATED_S = 4.0  # s, longest time from a request's end to its result, beside the tool's time
WORD_S = 0.45  # s, longest time of a spoken word
ENDED, INTERRUPTED = "the session ended", "the user spoke into it"


class Recording(NamedTuple):
    """One conversation, and its annotation."""

    text: np.ndarray  # int32[turns], all text-out tokens
    spoken: Spoken  # what the model said aloud
    events: Sequence[Event]  # annotation, in order of time
    notes: Sequence[Mapping[str, Any]]  # annotation, "delegations" of the session's meta
    delegations: Sequence[Delegation]  # read from the conversation's record
    tools_s: Mapping[int, float]  # by number of the delegation, time of its last request's tools, s


class Judged(NamedTuple):
    """The result of one measure for one event."""

    measure: str
    ok: bool
    tool_request: str  # name of the tool request, or kind of another request
    asked: str = ""  # words of the user
    wanted: str = ""  # right words of the model
    said: str = ""  # words of the model
    value: float | None = None  # time, s; None without one
    excluded: str = ""  # why it is not scored; "" if it is scored
    place: float = 0.0  # time of the request, as a share of the recording
    later: bool = False  # whether the result is due after the part in which the user asked for it


class DelegationScore(NamedTuple):
    """The score of one conversation."""

    judged: list[Judged]
    spans: int  # number of complete `<delegate>` spans
    matched: int  # number of those that belong to a tool request


class _Case(NamedTuple):
    """A tool request with its annotation and the model's span and delegation, None without."""

    event: Event
    note: Mapping[str, Any]
    span: Span | None
    delegation: Delegation | None


def score_delegations(recording: Recording) -> DelegationScore:
    """Scores one conversation by the measures of this module.

    Raises:
      ValueError: An event belongs to a delegation without a note.
    """
    asked = [s for s in read_spans(recording.text) if s.opening == Special.DELEGATE and s.complete]
    cases = _cases(recording, asked)
    said = attribute(recording.spoken, recording.events, _results(recording, cases))
    judged: list[Judged] = []
    for case in cases.values():
        judged += _delegated(recording, case)
        if case.note["cancelled_s"] < 0:
            judged.append(_result(recording, case, said, "result"))
        judged += _timing(recording, case, said)
    for index, event in enumerate(recording.events):
        if event.kind == "tool_request_cancel":
            judged.append(_cancel(recording, cases[event.delegation], event, said))
        elif event.kind == "tool_request_update":
            judged.append(_update(recording, cases[event.delegation], event, said))
        elif event.kind in (*REQUESTS, *INTERRUPTIONS) and event.wants_answer:
            judged += _while_waiting(recording, index, said)
    matched = sum(case.span is not None for case in cases.values())
    return DelegationScore(judged, len(asked), matched)


def _cases(recording: Recording, spans: Sequence[Span]) -> dict[int, _Case]:
    """The tool requests by their numbers; each takes the first span that fits and is free."""
    notes = {note["number"]: note for note in recording.notes}
    by_turn = {one.closed: one for one in recording.delegations}
    free, cases = list(spans), {}
    for index, event in enumerate(recording.events):
        if event.kind not in ("tool_request", "tool_request_cancel", "tool_request_update"):
            continue
        if event.delegation not in notes:
            raise ValueError(
                f"notes: got those of delegations {sorted(notes)}, wanted also {event.delegation}, "
                f"to which {event.text!r} belongs; rebuild the session"
            )
        if event.kind != "tool_request":
            continue
        following = next_to_model(recording.events, index)
        until = event.end_s + OPENS_WITHIN_S
        until = until if following is None else min(until, following.start_s)
        since = event.end_s - TEXT_BEFORE_S
        fitting = (s for s in free if since - 1e-9 <= reply_time(s.first) <= until + 1e-9)
        span = next(fitting, None)
        if span is not None:
            free.remove(span)
        delegation = None if span is None else by_turn.get(span.last)
        cases[event.delegation] = _Case(event, notes[event.delegation], span, delegation)
    return cases


def _results(recording: Recording, cases: Mapping[int, _Case]) -> list[Result]:
    """The results that arrived, with the words that the model should say."""
    said = {
        case.delegation.number: case.note["said"]
        for case in cases.values()
        if case.delegation is not None
    }
    return results_of(
        recording.delegations,
        len(recording.text),
        lambda one: said.get(one.number, recording.spoken.decode(one.result)),
    )


def _delegated(recording: Recording, case: _Case) -> list[Judged]:
    """Whether the request was delegated, and in exactly the right words."""
    event, note, span = case.event, case.note, case.span
    late = ENDED if event.end_s + OPENS_WITHIN_S > recording.spoken.duration_s else ""
    words = "" if span is None else " ".join(recording.spoken.decode(span.words).split())
    fixed = bool(note["updates"])  # if True, the request of the note is the corrected one
    wanted = "" if fixed else note["request"]
    excluded = late if span is None else ""
    one = Judged("recall", span is not None, note["tool_request"], event.text, wanted, words)
    one = one._replace(place=_place(recording, event))
    found = [one._replace(excluded=excluded)]
    if span is not None and not fixed:
        found.append(one._replace(measure="request", ok=words == wanted))
    return found


def _spoken_of(said: Sequence[Said], delegation: Delegation | None) -> list[Said]:
    """The utterances that say the result of a delegation."""
    return [one for one in said if delegation is not None and one.delegation == delegation.number]


def _result(recording: Recording, case: _Case, said: Sequence[Said], measure: str) -> Judged:
    """Whether the model said the true result of the true call word for word."""
    note, one = case.note, case.delegation
    pieces = _spoken_of(said, one)
    wanted, text = note["said"], " ".join(piece.utterance.text for piece in pieces)
    audible = any(piece.utterance.sound_s(recording.spoken) is not None for piece in pieces)
    ok = text == wanted and audible and _called(one, note["call"])
    asked_s = max([case.event.end_s, *(update["end_s"] for update in note["updates"])])
    due_s = asked_s + DELEGATED_S + note["tool_s"] + WORD_S * len(wanted.split())
    last_s = recording.spoken.duration_s - WORD_S * len(wanted.split())  # latest start
    excluded = ENDED if due_s > recording.spoken.duration_s else ""
    if not ok and not excluded:
        begun_s = 0.0
        if pieces:
            begun_s = pieces[0].utterance.start_s if _begins(wanted, text) else 0.0
        elif one is not None and one.arrived >= 0:
            begun_s = reply_time(one.arrived)
        excluded = ENDED if begun_s > last_s else _cut(recording.events, pieces, wanted)
    found = Judged(
        measure, ok, note["tool_request"], case.event.text, wanted, text, excluded=excluded
    )
    later = due_s > note.get("part_end_s", due_s)
    return found._replace(place=_place(recording, case.event), later=later)


def _place(recording: Recording, event: Event) -> float:
    """The end of an event as a share of the recording."""
    return event.end_s / recording.spoken.duration_s


def _called(delegation: Delegation | None, wanted: Mapping[str, Any]) -> bool:
    """Whether the last call of a delegation is the wanted one."""
    try:
        return delegation is not None and json.loads(delegation.call) == wanted
    except ValueError:
        return False


def _cut(events: Sequence[Event], pieces: Sequence[Said], wanted: str) -> str:
    """INTERRUPTED if the user spoke to the model while it said these utterances, else ""."""
    if not pieces:
        return ""
    last = pieces[-1].utterance
    text = " ".join(piece.utterance.text for piece in pieces)
    begun = (e.start_s for e in events if e.kind in TO_MODEL)
    into = any(pieces[0].utterance.start_s < start < last.end_s for start in begun)
    return INTERRUPTED if into and _begins(wanted, text) else ""


def _begins(wanted: str, text: str) -> bool:
    """Whether the wanted words begin with the words of `text`."""
    return f"{wanted} ".startswith(f"{text} ")


def _timing(recording: Recording, case: _Case, said: Sequence[Said]) -> list[Judged]:
    """The times of the holding reply and of the result."""
    events, note, one = recording.events, case.note, case.delegation
    response = find_response(events, list(events).index(case.event), recording.spoken)
    found = []
    blank = Judged("holding", response.start_s is not None, note["tool_request"], case.event.text)
    blank = blank._replace(place=_place(recording, case.event))
    if response.start_s is not None:
        found.append(blank._replace(value=response.start_s - case.event.end_s))
    else:
        early = response.early_s is not None
        found.append(blank._replace(excluded="it began early" if early else "there was none"))
    pieces = [piece for piece in _spoken_of(said, one) if not piece.stray]
    if one is None or not pieces:
        return found
    first = pieces[0].utterance
    closed_s = reply_time(one.settled)
    busy = any(
        event.kind not in NOBODY and event.start_s < first.start_s and event.end_s > closed_s
        for event in events
    )
    busy |= any(closed_s < other.utterance.end_s <= first.start_s for other in said)
    sound = first.sound_s(recording.spoken)
    why = "somebody spoke" if busy else "" if one.number in recording.tools_s else "no tool"
    why = why or ("inaudible" if sound is None else "")
    value = None if sound is None else sound - closed_s - recording.tools_s.get(one.number, 0.0)
    found.append(blank._replace(measure="latency", ok=True, value=value, excluded=why))
    if sound is not None:
        speech = [e for e in events if e.kind not in ("background", *NOBODY)]
        over = any(event.start_s <= sound < event.end_s for event in speech)
        found.append(blank._replace(measure="over_speech", ok=over, said=first.text))
    return found


def _cancel(recording: Recording, case: _Case, event: Event, said: Sequence[Said]) -> Judged:
    """Whether a cancellation dropped the right delegation, or was answered as too late."""
    turns = np.flatnonzero(recording.text == Special.CANCEL).tolist()
    since, until = event.end_s - TEXT_BEFORE_S, event.end_s + CANCELS_WITHIN_S
    turns = [turn for turn in turns if since - 1e-9 <= reply_time(turn) <= until + 1e-9]
    passed_on = bool(turns)
    number = -1 if case.delegation is None else case.delegation.number
    dropped = [one.number for one in recording.delegations if one.cancelled in turns]
    results = [case.note["said"]]
    if case.delegation is not None:
        # The result that arrived differs from the true one if the request was misunderstood.
        results.append(recording.spoken.decode(case.delegation.result))
    told = [
        one.utterance.text
        for one in said
        if one.utterance.start_s >= event.end_s
        and (one.delegation == number or (one.stray and one.utterance.text in results))
    ]
    missing = ENDED if not passed_on and until > recording.spoken.duration_s else ""
    late = passed_on and case.delegation is not None and case.delegation.given(turns[0])
    sorry = [
        one.utterance.text
        for one in said
        if late and one.utterance.start_s >= event.end_s and one.utterance.text == SORRY
    ]
    wanted = ["<cancel>", *([SORRY] if late else [])]
    text = [*(["<cancel>"] if passed_on else []), *told, *sorry]
    ok = text == wanted and dropped == ([] if late else [number])
    found = Judged(
        "cancel",
        ok,
        case.note["tool_request"],
        event.text,
        " ".join(wanted),
        " ".join(text),
        excluded=missing,
    )
    return found._replace(place=_place(recording, event))


def _update(recording: Recording, case: _Case, event: Event, said: Sequence[Said]) -> Judged:
    """Whether the model said the corrected result word for word."""
    found = _result(recording, case, said, "update")._replace(asked=event.text)
    if case.note["cancelled_s"] >= 0:
        return found._replace(excluded="cancelled later")
    again = any(update["end_s"] > event.end_s + 1e-3 for update in case.note["updates"])
    return found._replace(excluded="corrected again") if again else found


def _while_waiting(recording: Recording, index: int, said: Sequence[Said]) -> list[Judged]:
    """Whether the model answered another request word for word while a delegation ran."""
    event = recording.events[index]
    if not any(one.running(event.answer_turn) for one in recording.delegations):
        return []
    pieces = [piece for piece in said if piece.event == index]
    text = " ".join(piece.utterance.text for piece in pieces)
    audible = any(piece.utterance.sound_s(recording.spoken) is not None for piece in pieces)
    wanted = " ".join(event.answer.split())
    ok, excluded = text == wanted and audible, ""
    following = next_to_model(recording.events, index)
    if following is not None and following.kind in INTERRUPTIONS:
        excluded = INTERRUPTED
    elif event.answer_end_s > recording.spoken.duration_s:
        excluded = ENDED
    elif not ok:
        excluded = _cut(recording.events, pieces, wanted)
    found = Judged("waiting", ok, event.kind, event.text, wanted, text, excluded=excluded)
    return [found._replace(place=_place(recording, event))]
