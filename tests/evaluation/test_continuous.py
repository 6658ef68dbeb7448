"""Many requests in one long session and in fresh sessions, by models that are right or forget."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import evaluate
from interaction.data.sessions import make_session
from interaction.evaluation import Event, Spoken, score_session, summarise
from interaction.evaluation.continuous import Compared, compare_continuous, rates_by_place
from interaction.evaluation.joined import shift_event
from interaction.evaluation.run import evaluate as evaluate_model
from interaction.evaluation.scoring import Outcome, SessionScore
from interaction.evaluation.summary import table
from interaction.types import Chunk, Reply, Special
from tests.evaluation import fakes
from tests.evaluation.oracles import Oracle

TURN = fakes.TURN


class InTurn:
    """Runs another model at each start: first that for long sessions, then that for fresh ones."""

    def __init__(self, models: list[fakes.FakeModel]) -> None:
        self.models, self.starts = models, 0

    def init_state(self, sessions: int, seed: np.ndarray) -> tuple[int, int]:
        self.starts += 1
        return self.starts - 1, 0

    def decode(self, ids: list[int]) -> str:
        return self.models[-1].decode(ids)

    def step(self, state: tuple[int, int], chunk: Chunk) -> tuple[tuple[int, int], Reply]:
        which, turn = state
        turn, reply = self.models[which].step(turn, chunk)
        return (which, turn), reply


def record(made: fakes.FakeSession, voice: str = "espeak:en+m3:150:50:1") -> dict:
    events = [dataclasses.asdict(event) for event in made.events]
    user_transcript = np.full((len(made.text), 2), Special.NONE, np.int32)
    user_transcript[:3, 0] = fakes.encode("one two three")  # the fake model transcribes nothing
    meta = json.dumps({"voice": voice, "events": events})
    return {**made._asdict(), "user_transcript": user_transcript, "meta": meta}


def long_of(model: fakes.FakeModel, joined: int) -> fakes.FakeModel:
    """The same replies in fewer rows, each of which joins `joined` rows."""
    rows = len(model.text) // joined
    return fakes.FakeModel(model.audio.reshape(rows, -1), model.text.reshape(rows, -1))


def compare(
    made: list[fakes.FakeSession],
    joined: int,
    long: fakes.FakeModel,
    fresh: fakes.FakeModel | None = None,
) -> Compared:
    model = InTurn([long_of(long, joined), fresh or fakes.oracle(made)])
    records = [record(session) for session in made]
    count = len(made)
    return compare_continuous(model, records.__getitem__, count, joined, seed=0, batch=count)


def test_a_right_model_is_right_in_both() -> None:
    """The counts are those of the same sessions in `test_scoring`."""
    made = fakes.sessions()
    found = compare(made, 2, fakes.oracle(made))
    for one in (found.continuous, found.fresh):
        for key in fakes.ONE:
            assert one.figures[key] == 1, key
        for key in fakes.ZERO:
            assert one.figures[key] == 0, key
        counts = one.figures["counts"]
        assert counts["response_rate"] == 7 and counts["answer_exact"] == 4
        assert one.figures["excluded"]["answer_exact"] == {"interrupted": 2}
        assert counts["interruption_stop_rate"] == 2 and counts["other_speech_ignore_rate"] == 3
    assert found.answers == {"both": 4, "continuous_only": 0, "fresh_only": 0, "neither": 0}


def asking(count: int) -> list[fakes.FakeSession]:
    """Sessions with one request each."""
    one = {"kind": "request", "form": "ask.a", "start_s": 1.0, "end_s": 2.03, "answer": "paris"}
    return [fakes.build([dict(one)]) for _ in range(count)]


def test_a_model_that_forgets_gets_worse_in_later_thirds() -> None:
    """Of two long sessions with six parts, one has wrong answers from the fourth part on."""
    made = asking(12)
    model = fakes.oracle(made)
    model.text[3:6] = np.where(model.text[3:6] >= Special.COUNT, Special.COUNT + 1, model.text[3:6])
    found = compare(made, 6, model)
    assert found.fresh.figures["answer_exact"] == 1
    assert found.continuous.figures["answer_exact"] == 9 / 12
    assert found.continuous.figures["response_rate"] == 1
    assert found.answers == {"both": 9, "continuous_only": 0, "fresh_only": 3, "neither": 0}
    places = found.continuous.figures["breakdown"]["answer_exact_by_place"]
    assert {name: (one["rate"], one["n"]) for name, one in places.items()} == {
        "first third": (1.0, 4),
        "middle third": (0.75, 4),
        "last third": (0.5, 4),
    }
    assert list(places) == ["first third", "middle third", "last third"]
    fresh = found.fresh.figures["breakdown"]["answer_exact_by_place"]
    assert [one["rate"] for one in fresh.values()] == [1, 1, 1]


def test_answers_are_counted_in_pairs() -> None:
    made = asking(4)
    long, fresh = fakes.oracle(made), fakes.oracle(made)
    long.text[:2], fresh.text[1:3] = Special.SILENT, Special.SILENT
    found = compare(made, 2, long, fresh)
    assert found.answers == {"both": 1, "continuous_only": 1, "fresh_only": 1, "neither": 1}


def test_an_answer_that_goes_on_in_the_next_part_is_excluded_in_both() -> None:
    """In the long session its rest plays in the next part, and counts there as a false start."""
    count = "one two three four five six seven eight nine ten"
    first = fakes.build([{"kind": "request", "start_s": 12.0, "end_s": 13.0, "answer": count}])
    made = [first, *asking(1)]
    model = fakes.oracle(made)
    model.audio[1, : 5 * TURN] = 3_000  # five more micro-turns of it, until 1.2 s
    found = compare(made, 2, model)
    for one in (found.continuous, found.fresh):
        assert one.figures["excluded"]["answer_exact"] == {"the session ended": 1}
        assert one.figures["counts"]["answer_exact"] == 1
        assert one.figures["counts"]["response_rate"] == 2
    assert found.continuous.figures["counts"]["false_start_per_minute"] == 1
    assert found.fresh.figures["counts"]["false_start_per_minute"] == 0


def test_cutting_the_replies_equals_shifting_the_events() -> None:
    """For a right model. The whole session is scored at once, with shifted events."""
    made = fakes.sessions()
    events = [
        Event(**shift_event(dataclasses.asdict(event), 80 * part))
        for part, session in enumerate(made)
        for event in session.events
    ]
    audio = np.concatenate([session.model for session in made]).astype(np.float32) / 32_768
    text = np.concatenate([session.text for session in made])
    whole = score_session(events, Spoken.from_reply(audio, text, fakes.decode))
    parts = compare(made, 4, fakes.oracle(made)).continuous.scores
    cut = [outcome for score in parts for outcome in score.outcomes]
    key = [(one.measure, one.ok, one.excluded, one.said) for one in whole.outcomes]
    assert sorted(key) == sorted((one.measure, one.ok, one.excluded, one.said) for one in cut)


def test_sessions_have_to_fill_long_ones() -> None:
    made = [record(session) for session in asking(3)]
    with pytest.raises(ValueError, match=r"joined: got 3, 8, 2, wanted"):
        evaluate_model(fakes.oracle(asking(3)), made.__getitem__, 3, seed=0, joined=2)


def test_places_of_few_parts() -> None:
    event = Event("request", "ask", 1.0, 2.0)
    scores = [SessionScore([Outcome("answer", ok, event)], {}, 0.0, 0) for ok in (True, False)]
    assert list(rates_by_place(scores, "answer", 2)) == ["first third", "last third"]
    assert list(rates_by_place(scores, "answer", 1)) == ["middle third"]
    found = rates_by_place(scores * 2, "answer", 4)  # in order of time, not of size
    assert [(name, one["n"]) for name, one in found.items()] == [
        ("first third", 1),
        ("middle third", 2),
        ("last third", 1),
    ]


def test_figures_by_engine() -> None:
    """Two users of espeak, one of them without answer, one of flite, one of an unknown engine."""
    made = asking(4)
    model = fakes.oracle(made)
    model.text[1], model.audio[1] = Special.SILENT, 0
    voices = ["espeak:en+m3:150:50:1", "espeak:en+f2:150:50:1", "flite:awb:1:50:1", ""]
    records = [record(*pair) for pair in zip(made, voices, strict=True)]
    records[3]["user_transcript"][:] = Special.NONE
    figures = evaluate_model(model, records.__getitem__, 4, seed=0, batch=4).figures
    for key in ("answer_exact_by_engine", "response_by_engine"):
        rates = {name: (g["rate"], g["n"]) for name, g in figures["breakdown"][key].items()}
        assert rates == {"espeak": (0.5, 2), "flite": (1.0, 1), "unknown": (1.0, 1)}
    user_transcript = figures["breakdown"]["transcript_word_accuracy_by_engine"]
    assert user_transcript == {
        "espeak": {"rate": 0.0, "n": 6, "interval": None},
        "flite": {"rate": 0.0, "n": 3, "interval": None},
    }
    shown = table(figures)
    assert "answer_exact, espeak" in shown and "transcript_word_accuracy, flite" in shown
    assert "target" in shown and "measured" in shown
    assert summarise([])["breakdown"]["answer_exact_by_engine"] == {}


def test_the_command_shows_both(capsys: pytest.CaptureFixture) -> None:
    turns = evaluate.TALK_TURNS + evaluate.TAIL_TURNS
    tail = evaluate.TAIL_TURNS
    records = [make_session((4, i), "heldout", turns=turns, tail=tail) for i in range(4)]
    model = InTurn([long_of(Oracle(records), 2), Oracle(records)])
    figures = evaluate.run_continuous(model, 4, 2, 4, 4, 2, "heldout")
    json.dumps(figures)
    evaluate.show_continuous(figures)
    printed = capsys.readouterr().out
    assert "2 long sessions of 0.8 minutes" in printed
    for kind in ("continuous", "fresh"):
        one = figures[kind]
        assert kind in printed and one["answer_exact"] == one["response_rate"] == 1
        assert not any("the session ended" in why for why in one["excluded"].values())
    assert figures["continuous"]["counts"] == figures["fresh"]["counts"]
    line = next(one for one in printed.splitlines() if one.startswith("answer_exact "))
    assert line.count("1.000") >= 2
    for name in ("answer_exact, first third", "answer_exact, last third", "answers right in: both"):
        assert name in printed
