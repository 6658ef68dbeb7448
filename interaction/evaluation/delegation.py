"""Scores recorded conversations in which the model hands requests over.

Times are on the user's clock, as in `scoring`: reply n plays from 0.2 (n + 1) s. What cannot be
scored is excluded, with its reason.

- delegation_recall: errands after which a complete `<delegate>` span opens, from 0.3 s before the
  request's end until the user speaks to the model again, within 4 s.
- delegation_precision: those spans among all complete `<delegate>` spans; a second one for the
  same errand is a false one.
- request_exact: of those spans, where the errand is not corrected later, the words are exactly
  those of the true request.
- result_spoken_exact: errands that the user did not cancel and whose result came before the
  recording's end: what the model says from the arrival of the result's first word on, answers to
  other requests apart, is word for word the true result of the true request, corrections included,
  and audible, and the last call is the foreseen one: a timer's result does not tell how long it
  was. An errand that was not handed over, or whose result never came, counts as wrong.
- holding_reply: from the request's end to the first sound of the holding reply.
- result_latency: from the reply that closed the span, or that of its last update, to the first
  sound of the result, less the tools' own seconds, where nobody spoke or was answered in between.
- answers_while_waiting_exact: other requests whose answer falls due while a delegation runs: its
  text is exactly the annotated one, and audible.
- cancel_rate: cancellations after which `<cancel>` drops that errand's delegation within 3 s, and
  no result of it is told. Where the errand was not handed over there is nothing to drop: wrong.
- update_exact: corrections after which the corrected result is spoken exactly, as above.
- result_over_user_speech_rate: results whose first sound plays while the annotated speaker speaks,
  to whomever; his pauses inside a sentence count as speech.

An exact result or answer may be told in several utterances. One into which the user speaks before
it is finished is excluded, and so is one that the recording is too short for: whatever is said, if
that is known beforehand; if others' talk delays it, wrong words are wrong all the same.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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

OPENS_WITHIN_S = 4.0  # after an errand's end
CANCELS_WITHIN_S = 3.0
HANDED_OVER_S = 4.0  # a result that comes later than its tool and this never comes
WORD_S = 0.45  # a spoken word, at most
ENDED, INTERRUPTED = "the session ended", "the user spoke into it"


class Recording(NamedTuple):
    """One conversation and what is known about it."""

    text: np.ndarray  # int32[turns], as the model wrote it
    spoken: Spoken
    events: Sequence[Event]  # in order of time
    notes: Sequence[Mapping[str, Any]]  # "delegations" of the session's meta
    delegations: Sequence[Delegation]  # as they happened
    tools_s: Mapping[int, float]  # seconds of the tools of a delegation's last form


class Judged(NamedTuple):
    """How one thing went by one measure."""

    measure: str
    ok: bool
    tool_request: str  # name of the errand, or the kind of another request
    asked: str = ""  # the user's words
    wanted: str = ""
    said: str = ""
    value: float | None = None  # seconds, where there are some
    excluded: str = ""  # why it is not scored, "" if it is
    place: float = 0.0  # when it was asked, as a share of the recording
    later: bool = False  # its result is due after the end of the part in which it was asked


class DelegationScore(NamedTuple):
    """What was found in one conversation."""

    judged: list[Judged]
    spans: int  # complete `<delegate>` spans
    matched: int  # of them, those that an errand asked for


class _Case(NamedTuple):
    """An errand, and what was made of it."""

    event: Event
    note: Mapping[str, Any]
    span: Span | None
    delegation: Delegation | None


def score_delegations(recording: Recording) -> DelegationScore:
    """Scores one conversation; see the module for the measures.

    Raises:
      ValueError: An event is about a delegation of which there is no note.
    """
    asked = [s for s in read_spans(recording.text) if s.opening == Special.DELEGATE and s.complete]
    cases = _cases(recording, asked)
    said = attribute(recording.spoken, recording.events, _results(recording, cases))
    judged: list[Judged] = []
    for case in cases.values():
        judged += _handed_over(recording, case)
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
    """The errands by their numbers; each takes the first span that nobody has taken."""
    notes = {note["number"]: note for note in recording.notes}
    by_turn = {one.closed: one for one in recording.delegations}
    free, cases = list(spans), {}
    for index, event in enumerate(recording.events):
        if event.kind not in ("tool_request", "tool_request_cancel", "tool_request_update"):
            continue
        if event.delegation not in notes:
            raise ValueError(
                f"notes: got {sorted(notes)}, wanted {event.delegation}, of which {event.text!r} "
                "speaks; rebuild the session"
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
    """What arrived, with the words that should be said of it."""
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


def _handed_over(recording: Recording, case: _Case) -> list[Judged]:
    event, note, span = case.event, case.note, case.span
    late = ENDED if event.end_s + OPENS_WITHIN_S > recording.spoken.duration_s else ""
    words = "" if span is None else " ".join(recording.spoken.decode(span.words).split())
    fixed = bool(note["updates"])  # then the note has the corrected request
    wanted = "" if fixed else note["request"]
    excluded = late if span is None else ""
    one = Judged("recall", span is not None, note["tool_request"], event.text, wanted, words)
    one = one._replace(place=_place(recording, event))
    found = [one._replace(excluded=excluded)]
    if span is not None and not fixed:
        found.append(one._replace(measure="request", ok=words == wanted))
    return found


def _spoken_of(said: Sequence[Said], delegation: Delegation | None) -> list[Said]:
    return [one for one in said if delegation is not None and one.delegation == delegation.number]


def _result(recording: Recording, case: _Case, said: Sequence[Said], measure: str) -> Judged:
    """Whether the right tool's result was told word for word."""
    note, one = case.note, case.delegation
    pieces = _spoken_of(said, one)
    wanted, text = note["said"], " ".join(piece.utterance.text for piece in pieces)
    audible = any(piece.utterance.sound_s(recording.spoken) is not None for piece in pieces)
    ok = text == wanted and audible and _called(one, note["call"])
    asked_s = max([case.event.end_s, *(update["end_s"] for update in note["updates"])])
    due_s = asked_s + HANDED_OVER_S + note["tool_s"] + WORD_S * len(wanted.split())
    last_s = recording.spoken.duration_s - WORD_S * len(wanted.split())  # to begin it
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
    return event.end_s / recording.spoken.duration_s


def _called(delegation: Delegation | None, wanted: Mapping[str, Any]) -> bool:
    try:
        return delegation is not None and json.loads(delegation.call) == wanted
    except ValueError:
        return False


def _cut(events: Sequence[Event], pieces: Sequence[Said], wanted: str) -> str:
    """Whether the user spoke to the model while it was telling this."""
    if not pieces:
        return ""
    last = pieces[-1].utterance
    text = " ".join(piece.utterance.text for piece in pieces)
    begun = (e.start_s for e in events if e.kind in TO_MODEL)
    into = any(pieces[0].utterance.start_s < start < last.end_s for start in begun)
    return INTERRUPTED if into and _begins(wanted, text) else ""


def _begins(wanted: str, text: str) -> bool:
    return f"{wanted} ".startswith(f"{text} ")


def _timing(recording: Recording, case: _Case, said: Sequence[Said]) -> list[Judged]:
    """When the holding reply and the result came."""
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
    """Whether a cancellation was passed on, and the result not told."""
    turns = np.flatnonzero(recording.text == Special.CANCEL).tolist()
    since, until = event.end_s - TEXT_BEFORE_S, event.end_s + CANCELS_WITHIN_S
    turns = [turn for turn in turns if since - 1e-9 <= reply_time(turn) <= until + 1e-9]
    passed_on = bool(turns)
    number = -1 if case.delegation is None else case.delegation.number
    dropped = case.delegation is not None and case.delegation.cancelled in turns
    results = [case.note["said"]]
    if case.delegation is not None:
        results.append(recording.spoken.decode(case.delegation.result))  # of what was misheard
    told = [
        one.utterance.text
        for one in said
        if one.utterance.start_s >= event.end_s
        and (one.delegation == number or (one.stray and one.utterance.text in results))
    ]
    late = ENDED if not passed_on and until > recording.spoken.duration_s else ""
    text = " ".join([*(["<cancel>"] if passed_on else []), *told])
    ok = passed_on and dropped and not told
    found = Judged(
        "cancel", ok, case.note["tool_request"], event.text, "<cancel>", text, excluded=late
    )
    return found._replace(place=_place(recording, event))


def _update(recording: Recording, case: _Case, event: Event, said: Sequence[Said]) -> Judged:
    """Whether the corrected result was told word for word."""
    found = _result(recording, case, said, "update")._replace(asked=event.text)
    if case.note["cancelled_s"] >= 0:
        return found._replace(excluded="cancelled later")
    again = any(update["end_s"] > event.end_s + 1e-3 for update in case.note["updates"])
    return found._replace(excluded="corrected again") if again else found


def _while_waiting(recording: Recording, index: int, said: Sequence[Said]) -> list[Judged]:
    """Whether another request was answered word for word while a delegation ran."""
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
