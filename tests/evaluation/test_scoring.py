"""The figures of a right model and of several wrong ones are those that follow by hand."""

import numpy as np
import pytest

from interaction.evaluation import Spoken, rollout, score_session, summarise, table
from interaction.evaluation.events import Event
from interaction.types import Special
from tests.evaluation import fakes

TURN = fakes.TURN


def figures(model: fakes.FakeModel, made: list[fakes.FakeSession]) -> dict:
    rolled = rollout(model, [session.user for session in made], seeds=range(len(made)))
    return summarise(
        score_session(session.events, Spoken.from_reply(r.audio, r.text, fakes.decode))
        for session, r in zip(made, rolled, strict=True)
    )


def test_oracle_is_perfect() -> None:
    got = figures(fakes.oracle(fakes.sessions()), fakes.sessions())
    for key in fakes.ONE:
        assert got[key] == 1, key
    for key in fakes.ZERO:
        assert got[key] == 0, key
    assert 0.2 <= got["response_latency_p50_s"] <= got["response_latency_p90_s"] <= 0.44
    assert got["interruption_stop_latency_p90_s"] <= 0.46
    counts = got["counts"]
    assert counts["response_rate"] == 7
    assert counts["answer_exact"] == 4
    assert got["excluded"]["answer_exact"] == {"interrupted": 2}
    assert counts["interruption_stop_rate"] == 2
    assert counts["interruption_answer_exact"] == counts["backchannel_keep_rate"] == 1
    assert counts["other_speech_ignore_rate"] == 3
    assert counts["idle_minutes"] > 16 / 60
    assert got["breakdown"]["answer_exact_by_combination"]["held_out_combination"]["n"] == 1


def test_a_silent_model_fails_where_it_should_speak() -> None:
    made = fakes.sessions()
    got = figures(fakes.constant(made, 0.0, Special.SILENT), made)
    assert got["response_rate"] == got["answer_exact"] == got["interruption_answer_exact"] == 0
    assert got["pause_takeover_rate"] == got["false_start_per_minute"] == 0
    assert got["other_speech_ignore_rate"] == 1
    assert got["response_latency_p50_s"] is got["interruption_stop_rate"] is None
    assert got["backchannel_keep_rate"] is None
    assert got["excluded"]["interruption_stop_rate"] == {"the model was not speaking": 2}
    assert got["excluded"]["backchannel_keep_rate"] == {"the model was not answering": 1}


def test_a_model_that_always_talks_fails_where_it_should_be_silent() -> None:
    made = fakes.sessions()
    got = figures(fakes.constant(made, 3_000.0, Special.COUNT), made)
    assert got["response_rate"] == got["answer_exact"] == got["interruption_stop_rate"] == 0
    assert got["pause_takeover_rate"] == got["early_response_rate"] == 1
    assert got["other_speech_ignore_rate"] == 0
    assert got["backchannel_keep_rate"] is None or got["backchannel_keep_rate"] == 0
    assert got["false_start_per_minute"] > 5


def test_noise_below_the_threshold_is_silence() -> None:
    made = fakes.sessions()
    got = figures(fakes.constant(made, 32_768 * 10 ** (-50 / 20), Special.SILENT), made)
    assert got["false_start_per_minute"] == 0 and got["response_rate"] == 0


@pytest.mark.parametrize("delay", [1, 2])
def test_delay_adds_to_the_latency_and_nothing_else(delay: int) -> None:
    made = fakes.sessions()
    on_time, late = figures(fakes.oracle(made), made), figures(fakes.oracle(made, delay), made)
    for percent in (10, 50, 90):
        key = f"response_latency_p{percent}_s"
        assert late[key] == pytest.approx(on_time[key] + 0.2 * delay, abs=0.021)
    assert late["response_rate"] == late["answer_exact"] == 1
    assert late["pause_takeover_rate"] == late["false_start_per_minute"] == 0
    assert late["interruption_stop_rate"] == (1 if delay == 1 else 0)


def test_a_model_that_is_a_second_late_talks_over_the_correction() -> None:
    made = fakes.sessions()
    got = figures(fakes.oracle(made, delay=5), made)
    assert got["interruption_stop_rate"] == 0
    assert (
        got["early_response_rate"] == 1 / 7
    )  # the model was still speaking when the user had finished
    assert got["response_rate"] == 5 / 7  # and one answer would start only after the interruption


def test_wrong_text_with_right_speech_is_not_exact() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    model.text = np.where(
        model.text == fakes.encode("paris")[0], fakes.encode("two")[0], model.text
    )
    got = figures(model, made)
    assert got["answer_exact"] == 3 / 4
    assert got["interruption_answer_exact"] == 0
    assert got["response_rate"] == 1


def test_right_text_without_speech_is_not_exact() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    model.audio = np.zeros_like(model.audio)
    assert figures(model, made)["answer_exact"] == 0


def test_stopping_at_a_backchannel_is_seen() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    model.audio[2, 17 * TURN : 40 * TURN] = 0
    got = figures(model, made)
    assert got["backchannel_keep_rate"] == 0 and got["response_rate"] == 1


def test_pausing_and_starting_again_at_a_backchannel_is_seen() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    model.audio[2, 17 * TURN : 22 * TURN] = 0
    assert figures(model, made)["backchannel_keep_rate"] == 0


def test_one_utterance_in_silence_is_one_false_start() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    model.audio[3, 40 * TURN : 44 * TURN] = 3_000
    got = figures(model, made)
    assert got["counts"]["false_start_per_minute"] == 1
    assert got["false_start_per_minute"] == pytest.approx(1 / got["counts"]["idle_minutes"])


def test_answering_somebody_else_is_seen() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    start = fakes.answer_turn(5.5)
    model.audio[0, start * TURN : (start + 2) * TURN] = 3_000
    assert figures(model, made)["other_speech_ignore_rate"] == pytest.approx(2 / 3)


def test_speaking_in_a_pause_is_a_takeover() -> None:
    made = fakes.sessions()
    model = fakes.oracle(made)
    model.audio[0, 43 * TURN : 45 * TURN] = 3_000
    got = figures(model, made)
    assert got["pause_takeover_rate"] == 1
    assert got["response_rate"] == 6 / 7


def test_answers_cut_by_the_end_are_excluded() -> None:
    late = fakes.build(
        [{"kind": "request", "start_s": 14.0, "end_s": 15.6, "answer": "paris four"}]
    )
    got = figures(fakes.oracle([late]), [late])
    assert got["excluded"]["answer_exact"] == {"the session ended": 1}
    assert got["answer_exact"] is got["response_rate"] is None


def test_table_shows_what_was_missed() -> None:
    made = fakes.sessions()
    text = table(figures(fakes.constant(made, 0.0, Special.SILENT), made))
    assert "response_rate" in text and "missed" in text
    assert "missed" not in table(figures(fakes.oracle(made), made))


def test_rollout_wants_a_seed_for_each_user() -> None:
    made = fakes.sessions()
    with pytest.raises(ValueError, match="seeds"):
        rollout(fakes.oracle(made), [made[0].user], seeds=[1, 2])


def test_a_reply_to_somebody_else_after_a_long_answer_is_seen() -> None:
    """Speech that begins after the annotated end of an answer does not belong to the answer."""
    request = Event("request", "ask", 1.0, 2.0, answer="one two", answer_turn=11, answer_end_s=5.4)
    aside = Event("side_speech", "aside", 5.8, 7.0)
    sound = np.array([[2.45, 5.3], [7.3, 7.9]])
    spoken = Spoken(sound, np.full(60, Special.SILENT), lambda ids: "")
    outcomes = score_session([request, aside], spoken).outcomes
    assert [o.ok for o in outcomes if o.measure == "other_speech_ignore"] == [False]
