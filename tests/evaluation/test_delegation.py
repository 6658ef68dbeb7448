"""Figures of hand-made recordings with delegations, all right or with one mistake."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from interaction.background import agent, delegations
from interaction.data.delegation_sessions import make_delegation_session
from interaction.data.tokenizer import load_tokenizer
from interaction.evaluation import Event, Spoken, parse_events
from interaction.evaluation.delegation import Recording, score_delegations
from interaction.evaluation.delegation_history import Delegation, Step
from interaction.evaluation.delegation_summary import delegation_table, summarise_delegations
from interaction.evaluation.events import reply_time
from interaction.evaluation.rollout import to_float
from interaction.evaluation.spans import aloud, read_spans
from interaction.evaluation.talk import TAIL_S
from interaction.model.control_tokens import spoken_tokens
from interaction.types import Special

TURNS = 150
CALL = {"tool": "timer", "amount": 6, "unit": "seconds"}
WORDS = load_tokenizer()
SAID = "it is fifty six"


class Made:
    """A recording under construction; the model's audio is noise where its text has words."""

    def __init__(self) -> None:
        self.text = np.full(TURNS, Special.SILENT, np.int32)
        self.events: list[Event] = []
        self.notes: list[dict[str, Any]] = []
        self.delegations: list[Delegation] = []
        self.tools: dict[int, float] = {}
        self.inaudible: list[int] = []  # micro-turns without sound

    def say(self, first: int, words: str) -> None:
        """Writes words, each over two micro-turns."""
        ids = WORDS.encode(words)
        self.text[first : first + 2 * len(ids)] = Special.HOLD
        self.text[first : first + 2 * len(ids) : 2] = ids

    def quiet(self, first: int, last: int) -> None:
        self.text[first : last + 1] = Special.SILENT

    def span(self, first: int, opening: int, words: str) -> int:
        tokens = [opening, *WORDS.encode(words), Special.END_DELEGATE]
        self.text[first : first + len(tokens)] = tokens
        return first + len(tokens) - 1

    def event(self, kind: str, start: float, end: float, answer: str = "", **more: object) -> None:
        first = int(np.ceil((end + 0.22) / 0.2 - 1e-9)) - 1
        last = first + 2 * len(WORDS.encode(answer)) if answer else first
        times = {"answer_turn": first, "answer_end_turn": last, "answer_end_s": reply_time(last)}
        self.events.append(
            Event(kind, kind, start, end, text=kind, answer=answer, **(times | more))
        )
        if answer:
            self.say(first, answer)

    def note(self, request: str, said: str, **more: object) -> dict[str, Any]:
        note = {"number": len(self.notes) + 1, "tool_request": "times", "updates": []}
        note |= {"cancelled_s": -1.0, "request": request, "said": said, "tool_s": 2.0}
        note |= {"call": CALL} | more
        self.notes.append(note)
        return note

    def delegate(self, first: int, words: str) -> Delegation:
        """Writes a span, and adds the delegation that a record has of it."""
        closed = self.span(first, Special.DELEGATE, words)
        one = Delegation(len(self.delegations) + 1, words, closed)
        self.delegations.append(one)
        return one

    def arrive(self, one: Delegation, turn: int, words: str, tool_s: float = 2.0) -> None:
        one.steps.append(Step(turn - 1, agent.CALL, json.dumps(CALL)))
        ids = (*WORDS.encode(words), Special.END_DELEGATE)
        one.arrivals += [(turn, ids[:4]), (turn + 1, ids[4:])]
        one.steps.append(Step(turn + 1, delegations.GIVEN, ""))
        self.tools[one.number] = tool_s

    def recording(self) -> Recording:
        noise = np.random.default_rng(0).normal(0, 0.1, TURNS * 3_200)
        loud = np.repeat(aloud(self.text) != Special.SILENT, 3_200)
        for turn in self.inaudible:
            loud[turn * 3_200 : (turn + 1) * 3_200] = False
        spoken = Spoken.from_reply(np.where(loud, noise, 0), self.text, WORDS.decode)
        events = sorted(self.events, key=lambda event: event.start_s)
        return Recording(self.text, spoken, events, self.notes, self.delegations, self.tools)

    def figures(self) -> dict[str, Any]:
        return summarise_delegations([score_delegations(self.recording())])


def asked() -> Made:
    """A tool request whose span has micro-turns 20 to 24, and whose result is said from 40 on."""
    made = Made()
    made.note("seven times eight", SAID)
    made.event("tool_request", 1.0, 2.03, "let me see", delegation=1)
    one = made.delegate(20, "seven times eight")
    made.arrive(one, 38, SAID)
    made.say(40, SAID)
    return made


RIGHT = ("delegation_recall", "delegation_precision", "request_exact", "result_spoken_exact")


def test_a_model_that_is_always_right_has_perfect_figures() -> None:
    figures = asked().figures()
    for key in RIGHT:
        assert figures[key] == 1, key
    assert figures["delegations"] == 1 and figures["result_over_user_speech_rate"] == 0
    assert figures["holding_reply_p50_s"] == pytest.approx(0.37, abs=0.021)
    closed, first = reply_time(24), reply_time(40)
    assert figures["result_latency_p50_s"] == pytest.approx(first - closed - 2.0)
    assert figures["cancel_rate"] is figures["update_exact"] is None
    assert figures["by_tool_request"]["result_spoken_exact"]["times"]["n"] == 1
    assert not any(figures["mistakes"].values())
    assert "result_latency_p50_s" in delegation_table(figures)


def never(made: Made) -> None:
    made.quiet(20, 60)
    made.delegations.clear()


def unfinished(made: Made) -> None:
    made.text[24] = Special.SILENT
    made.quiet(40, 60)
    made.delegations.clear()


def late(made: Made) -> None:
    made.quiet(20, 24)
    made.span(32, Special.DELEGATE, "seven times eight")
    made.delegations[0].closed = 36


def twice(made: Made) -> None:
    made.span(26, Special.DELEGATE, "seven times eight")


def other_request(made: Made) -> None:
    made.span(20, Special.DELEGATE, "seven times nine")


def other_result(made: Made) -> None:
    made.quiet(40, 60)
    made.say(40, "it is fifty five")


def result_again(made: Made) -> None:
    made.say(60, SAID)


def result_before(made: Made) -> None:
    """The model says something else first."""
    made.quiet(40, 60)
    made.say(39, "okay")
    made.say(44, SAID)


def inaudible(made: Made) -> None:
    made.inaudible = list(range(40, 60))


def no_result(made: Made) -> None:
    made.delegations[0].arrivals.clear()
    made.quiet(40, 60)


def unsaid(made: Made) -> None:
    made.quiet(40, 60)


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (never, {"delegation_recall": 0, "result_spoken_exact": 0, "delegation_precision": None}),
        (unfinished, {"delegation_recall": 0, "result_spoken_exact": 0}),
        (late, {"delegation_recall": 0, "delegation_precision": 0, "result_spoken_exact": 0}),
        (twice, {"delegation_precision": 0.5}),
        (other_request, {"request_exact": 0}),
        (other_result, {"result_spoken_exact": 0}),
        (result_again, {"result_spoken_exact": 0}),
        (result_before, {"result_spoken_exact": 0}),
        (inaudible, {"result_spoken_exact": 0}),
        (no_result, {"result_spoken_exact": 0}),
        (unsaid, {"result_spoken_exact": 0}),
    ],
)
def test_each_mistake_is_seen(spoil: Callable[[Made], None], wrong: dict[str, Any]) -> None:
    made = asked()
    spoil(made)
    figures = made.figures()
    for key in RIGHT:
        if key in wrong:
            assert figures[key] == wrong[key], key
        elif figures[key] is not None:
            assert figures[key] == 1, key
    assert any(figures["mistakes"].values()) or "delegation_precision" in wrong


def test_a_result_in_two_pieces_is_as_exact() -> None:
    made = asked()
    made.quiet(40, 60)
    made.say(40, "it is")
    made.say(46, "fifty six")
    assert made.figures()["result_spoken_exact"] == 1


def test_a_result_after_the_end_is_not_scored() -> None:
    made = asked()
    made.notes[0]["tool_s"] = 60.0
    no_result(made)
    figures = made.figures()
    assert figures["result_spoken_exact"] is None
    assert figures["excluded"]["result_spoken_exact"] == {"the session ended": 1}


def test_results_that_are_due_after_their_part_are_marked() -> None:
    """The result is due at 2.03 s + 4 s + the tool's 2 s + 4 words of 0.45 s = 9.83 s."""
    for end_s, later in ((9.8, True), (9.9, False)):
        made = asked()
        made.notes[0]["part_end_s"] = end_s
        judged = score_delegations(made.recording()).judged
        result = next(one for one in judged if one.measure == "result")
        assert result.later == later and not result.excluded
        assert {round(one.place, 4) for one in judged} == {round(2.03 / reply_time(TURNS), 4)}


def test_even_a_result_in_time_is_not_scored_if_the_recording_is_too_short() -> None:
    made = asked()
    made.notes[0]["tool_s"] = 0.2 * TURNS - 6
    assert made.figures()["excluded"]["result_spoken_exact"] == {"the session ended": 1}


@pytest.mark.parametrize("text", ["{}", "", "{", json.dumps(CALL | {"amount": 7})])
def test_the_right_words_after_a_wrong_call_are_wrong(text: str) -> None:
    made = asked()
    made.delegations[0].steps[0] = Step(37, agent.CALL, text)
    assert made.figures()["result_spoken_exact"] == 0
    made.delegations[0].steps.insert(0, Step(36, agent.CALL, json.dumps(CALL)))
    assert made.figures()["result_spoken_exact"] == 0
    made.delegations[0].steps.insert(2, Step(37, agent.CALL, json.dumps(CALL)))
    assert made.figures()["result_spoken_exact"] == 1


def test_wrong_words_at_the_end_are_wrong() -> None:
    for words, excluded in (("it is", True), ("it is nine", False)):
        made = asked()
        made.quiet(40, 60)
        made.say(TURNS - 2 * len(WORDS.encode(words)), words)
        figures = made.figures()
        assert figures["result_spoken_exact"] == (None if excluded else 0)
        assert bool(figures["excluded"]["result_spoken_exact"]) == excluded


def test_a_result_that_the_user_interrupts_is_not_scored() -> None:
    made = asked()
    made.quiet(44, 60)
    made.event("request", 8.9, 9.6, "paris")
    figures = made.figures()
    assert figures["excluded"]["result_spoken_exact"] == {"the user spoke into it": 1}
    made = asked()
    made.quiet(42, 60)
    made.say(44, "nine")  # wrong words, although the user speaks into them
    made.event("request", 8.9, 9.6, "paris")
    assert made.figures()["result_spoken_exact"] == 0


def test_a_result_over_the_users_speech_is_counted() -> None:
    for kind, rate in (("request", 1), ("backchannel", 1), ("background", 0), ("noise", 0)):
        made = asked()
        made.event(kind, reply_time(40) - 0.3, reply_time(40) + 0.5)
        assert made.figures()["result_over_user_speech_rate"] == rate, kind


def test_latency_is_not_scored_if_somebody_spoke_or_no_tool_is_known() -> None:
    made = asked()
    made.event("side_speech", 6.0, 7.0)
    figures = made.figures()
    assert figures["result_latency_p50_s"] is None
    assert figures["excluded"]["result_latency"] == {"somebody spoke": 1}
    made = asked()
    made.tools.clear()
    assert made.figures()["excluded"]["result_latency"] == {"no tool": 1}
    made = asked()
    inaudible(made)
    assert made.figures()["excluded"]["result_latency"] == {"inaudible": 1}


def test_latencies_go_to_the_first_sound() -> None:
    made = asked()
    made.inaudible = [40, 41]
    figures = made.figures()
    sound = reply_time(42) - reply_time(24) - 2.0
    assert figures["result_latency_p50_s"] == pytest.approx(sound, abs=0.021)
    made.quiet(10, 19)
    figures = made.figures()
    assert figures["holding_reply_p50_s"] is None
    assert figures["excluded"]["holding_reply"] == {"there was none": 1}


def waiting(answer: str = "paris", said: str = "paris") -> Made:
    """Another request while the tool works; the result is said after the answer to it."""
    made = asked()
    made.quiet(40, 60)
    made.event("request", 5.5, 6.5, answer)
    made.quiet(33, 40)
    made.say(33, said)
    made.say(44, SAID)
    return made


def test_answers_while_waiting() -> None:
    figures = waiting().figures()
    assert figures["answers_while_waiting_exact"] == figures["result_spoken_exact"] == 1
    figures = waiting(said="rome").figures()
    assert figures["answers_while_waiting_exact"] == 0 and figures["result_spoken_exact"] == 1
    assert figures["mistakes"]["answers_while_waiting_exact"][0]["said"] == "rome"
    made = waiting()
    made.inaudible = list(range(33, 38))
    assert made.figures()["answers_while_waiting_exact"] == 0
    made = waiting()
    made.delegations[0].steps.append(Step(30, delegations.GIVEN, ""))
    assert made.figures()["answers_while_waiting_exact"] is None


def cancelled() -> Made:
    made = Made()
    made.note("seven times eight", SAID, cancelled_s=7.0)
    made.event("tool_request", 1.0, 2.03, "let me see", delegation=1)
    one = made.delegate(20, "seven times eight")
    made.event("tool_request_cancel", 6.0, 7.0, "okay", delegation=1)
    made.text[39] = Special.CANCEL
    one.steps.append(Step(39, delegations.CANCELLED, ""))
    return made


def test_cancel() -> None:
    figures = cancelled().figures()
    assert figures["cancel_rate"] == 1 and figures["result_spoken_exact"] is None
    made = cancelled()
    made.say(60, SAID)
    assert made.figures()["cancel_rate"] == 0
    made = cancelled()
    made.text[39], made.text[52] = Special.SILENT, Special.CANCEL  # later than 3 s
    assert made.figures()["cancel_rate"] == 0
    made = cancelled()
    made.text[39] = Special.SILENT
    made.delegations[0].steps.clear()
    made.arrive(made.delegations[0], 60, SAID)
    made.say(61, "it is nine")
    assert made.figures()["cancel_rate"] == 0
    made = cancelled()
    made.arrive(made.delegations[0], 37, "it is sixty three")  # of a misunderstood request
    made.say(60, "it is sixty three")
    assert made.figures()["cancel_rate"] == 0


def test_a_cancellation_that_drops_nothing_or_another_delegation_is_wrong() -> None:
    made = cancelled()
    made.quiet(20, 24)
    made.delegations.clear()  # it was not delegated
    assert made.figures()["cancel_rate"] == 0
    made = cancelled()
    made.delegations[0].steps.clear()
    made.delegations.append(Delegation(2, "the time", 30, [Step(39, delegations.CANCELLED, "")]))
    assert made.figures()["cancel_rate"] == 0


def updated(said: str = "it is sixty three", update: bool = True) -> Made:
    made = Made()
    made.note("seven times nine", "it is sixty three", updates=[{"end_s": 7.0, "words": "nine"}])
    made.event("tool_request", 1.0, 2.03, "let me see", delegation=1)
    one = made.delegate(20, "seven times eight")
    made.event("tool_request_update", 6.0, 7.0, "okay", delegation=1)
    if update:
        closed = made.span(40, Special.UPDATE, "nine")
        one.steps.append(Step(closed, delegations.UPDATED, "nine"))
    made.arrive(one, 60, said)
    made.say(62, said)
    return made


def test_update() -> None:
    figures = updated().figures()
    assert figures["update_exact"] == figures["result_spoken_exact"] == 1
    assert figures["request_exact"] is None  # the note has the corrected request
    latency = reply_time(62) - reply_time(42) - 2.0
    assert figures["result_latency_p50_s"] == pytest.approx(latency)
    figures = updated(SAID, update=False).figures()
    assert figures["update_exact"] == figures["result_spoken_exact"] == 0
    made = updated()
    made.notes[0]["cancelled_s"] = 9.0
    assert made.figures()["excluded"]["update_exact"] == {"cancelled later": 1}


def test_results_of_two_tool_requests_are_told_apart() -> None:
    made = asked()
    made.quiet(40, 60)
    made.note("the time", "it is exactly four")
    made.event("tool_request", 6.0, 7.0, "one moment", delegation=2)
    two = made.delegate(45, "the time")
    made.arrive(two, 60, "it is exactly four")
    made.say(55, SAID)
    made.say(70, "it is exactly four")
    assert made.figures()["result_spoken_exact"] == 1
    made.quiet(55, 90)
    made.say(62, "it is exactly four")
    made.say(80, SAID)
    assert made.figures()["result_spoken_exact"] == 1  # in any order


def test_an_event_without_a_note_is_refused() -> None:
    made = asked()
    made.notes.clear()
    with pytest.raises(ValueError, match="notes: got"):
        made.figures()


def test_spans_silence_the_same_tokens_as_the_model() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        text = rng.integers(0, Special.COUNT + 4, 60).astype(np.int32)
        np.testing.assert_array_equal(aloud(text), np.asarray(spoken_tokens(text[None])[0])[0])
    word = Special.COUNT
    text = [Special.DELEGATE, word, Special.END_DELEGATE, Special.UPDATE, word, Special.SILENT]
    first, second = read_spans(np.asarray(text))
    assert first.complete and first.last == 2 and first.words == (word,)
    assert not second.complete and second.opening == Special.UPDATE


# Records.


# Sessions from the generator: a model that does what the annotation says is perfect.


def as_annotated(index: int) -> Recording:
    """A session of the generator, with its own replies instead of a model's."""
    record = make_delegation_session((11, index), "heldout", turns=110)  # corrections take time
    meta, text = json.loads(record["meta"]), record["text"]
    events = parse_events(record["meta"])
    spans = [span for span in read_spans(text) if span.complete]
    asked = [span for span in spans if span.opening == Special.DELEGATE]
    found = {
        note["number"]: Delegation(note["number"], note["request"], span.last)
        for note, span in zip(meta["delegations"], asked, strict=False)
    }
    fixes = [event for event in events if event.kind == "tool_request_update"]
    updates = [span for span in spans if span.opening == Special.UPDATE]
    for event, span in zip(fixes, updates, strict=False):
        found[event.delegation].steps.append(Step(span.last, delegations.UPDATED, ""))
    drops = [event for event in events if event.kind == "tool_request_cancel"]
    for event, turn in zip(drops, np.flatnonzero(text == Special.CANCEL), strict=False):
        found[event.delegation].steps.append(Step(int(turn), delegations.CANCELLED, ""))
    for note in meta["delegations"]:
        one, turn = found.get(note["number"]), note["said_turn"]
        if one is not None and turn >= 0:
            one.steps.append(Step(turn - 1, agent.CALL, json.dumps(note["call"])))
            one.arrivals.append((turn, tuple(WORDS.encode(note["said"]))))
            one.steps.append(Step(turn + 1, delegations.GIVEN, ""))
    tail = round(5 * TAIL_S)  # micro-turns, as in the suite
    text = np.pad(text, (0, tail), constant_values=Special.SILENT)
    audio = np.pad(to_float(record["model"]), (0, tail * 3_200))
    spoken = Spoken.from_reply(audio, text, WORDS.decode)
    return Recording(text, spoken, events, meta["delegations"], list(found.values()), {})


def said_or_cancelled(note: dict) -> bool:
    return note.get("whole", False) or note["cancelled_s"] >= 0


def test_the_annotation_is_perfect() -> None:
    """In sessions that have room for all results."""
    found = [as_annotated(index) for index in range(40)]
    whole = [one for one in found if all(said_or_cancelled(note) for note in one.notes)]
    assert len(whole) > 20
    figures = summarise_delegations(map(score_delegations, whole))
    keys = ("cancel_rate", "update_exact", "answers_while_waiting_exact", *RIGHT)
    for key in keys:
        assert figures[key] == 1, (key, figures["mistakes"].get(key))
        assert figures["counts"][key] >= 2, key
    assert figures["result_over_user_speech_rate"] == 0
    assert 0.2 <= figures["holding_reply_p50_s"] <= 0.45
