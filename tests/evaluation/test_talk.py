"""Conversations in real time, with a clock that the test controls."""

import json
import pathlib
import threading
import time

import numpy as np
import pytest

from experiments import agent_factory, evaluate
from interaction.background import agent, delegations
from interaction.background.agent import CALL, BackgroundAgent
from interaction.background.scripted import ScriptedAgent
from interaction.background.toolbox import Toolbox
from interaction.data.delegation_sessions import make_delegation_session
from interaction.evaluation import talk as talks
from interaction.evaluation.delegation_history import Delegation, Step
from interaction.evaluation.lanes import (
    SAID,
    THINKING,
    TOOL,
    WAITING,
    brief_call,
    brief_result,
    depth,
    make_lanes,
    summary,
)
from interaction.evaluation.utterances import Said, Utterance
from interaction.pretrained import store
from tests.evaluation.oracles import Clock, LiveOracle, as_foreseen

SILENCE = np.zeros(3_200 * 10, np.int16)


def silent(turns: int = 10) -> dict[str, np.ndarray]:
    return {"model": np.zeros(turns * 3_200, np.int16), "text": np.ones(turns, np.int32)}


def test_a_conversation_takes_a_micro_turn_every_200_ms_also_after_the_user() -> None:
    clock = Clock()
    done = talks.talk(
        LiveOracle({3: silent()}),
        None,
        SILENCE[:-100],
        3,
        tail_s=1.0,
        clock=clock,
        sleep=clock.sleep,
    )
    assert len(done.text) == len(done.step_s) == 15 and len(done.audio) == 15 * 3_200
    assert clock.now == pytest.approx(3.0) and done.missed == done.missed_beside == 0
    assert done.recorded


def test_late_replies_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model, and a slow agent for which the conversation should not wait."""

    class Slow(ScriptedAgent):
        def observe(self, turn: agent.MicroTurn) -> None:
            if len(self.turns) == 4:
                time.sleep(0.25)
            super().observe(turn)

    class SlowModel(LiveOracle):
        def step(self, state: tuple, chunk: object) -> tuple:
            if state[1] == 8:
                time.sleep(0.25)
            return super().step(state, chunk)

    started = time.monotonic()
    done = talks.talk(SlowModel({0: silent()}), Slow({}), SILENCE, 0, tail_s=0.0)
    assert time.monotonic() - started < 4
    assert done.missed >= 2 and 1 <= done.missed_beside < done.missed
    assert done.driver_s[4] > 0.2 and done.step_s[8] > 0.2


# Several sessions at once.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs conversations without waiting."""

    def run(*args: object, **more: object) -> talks.Talk:
        clock = Clock()
        return whole(*args, **more, clock=clock, sleep=clock.sleep)

    whole = talks.talk
    monkeypatch.setattr(talks, "talk", run)
    monkeypatch.setattr(talks, "CALL_S", 0.0)


def agents(metas: list[dict]) -> talks.MakeAgent:
    """Agents of the sessions; a session is recognised by the price of milk in its table."""
    by_table = {json.dumps(meta["prices"]): meta for meta in metas}

    def make(toolbox: Toolbox) -> BackgroundAgent:
        found = {}
        for meta in by_table.values():
            item, (price, _) = next(iter(meta["prices"].items()))
            call = toolbox.start(json.dumps({"tool": "lookup", "item": item, "field": "price"}))
            while not call.done():
                time.sleep(0.01)
            found[json.loads(call.result())["result"] == price] = meta
        return ScriptedAgent(as_foreseen(found[True]))

    return make


def test_the_suite_gives_every_figure(
    tmp_path: pathlib.Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(talks, "CALL_S", 0.0)
    seed = 7  # sessions with a cancellation
    records = [make_delegation_session((seed, i), "heldout") for i in range(2)]
    seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1)[0]) % 2**31 for i in range(2)]
    live = LiveOracle(dict(zip(seeds, records, strict=True)))
    metas = [json.loads(record["meta"]) for record in records]
    assert metas[0]["prices"]["milk"] != metas[1]["prices"]["milk"]
    folder = tmp_path / "records"
    figures = evaluate.run_delegations(live, agents(metas), 2, seed, 2, folder)
    json.dumps(figures)
    evaluate.show_delegations(figures)
    printed = capsys.readouterr().out
    for key in ("delegation_recall", "delegation_precision", "request_exact", "cancel_rate"):
        assert figures[key] == 1 and key in printed, key
    assert figures["delegations"] == sum(len(meta["delegations"]) for meta in metas)
    assert figures["replays_bit_equal"] == "2 of 2" and "2 of 2" in printed
    assert figures["turns"] == 2 * (80 + 30) and figures["records_incomplete"] == 0
    done = sum(note["said_turn"] >= 0 for meta in metas for note in meta["delegations"])
    told = figures["counts"]["result_spoken_exact"]
    assert done <= told and figures["result_spoken_exact"] == pytest.approx(done / told)
    with pytest.raises(ValueError, match="records: got"):
        evaluate.run_delegations(live, agents(metas), 2, seed, 2, folder)
    recording = talks.read_recording(folder / "00000.session", live.decode)
    assert len(recording.delegations) == len(metas[0]["delegations"])


# Tools of a session.


def notes() -> list[dict]:
    slow = {"tool": "convert", "amount": 3, "unit": "weeks", "to": "days"}
    fixed = {"tool": "calculate", "expression": "7 * 9"}
    return [
        {"call": slow, "tool_s": 0.3, "updates": []},
        {"call": fixed, "tool_s": 0.2, "updates": [{"end_s": 1.0, "words": "nine"}]},
    ]


def test_calls_take_as_long_as_the_notes_say() -> None:
    call = notes()[0]["call"]
    assert talks.call_seconds(notes(), {**call, "amount": 3.0}) == 0.3
    assert talks.call_seconds(notes(), {**call, "amount": 4}) == 0.3, "misunderstood"
    assert talks.call_seconds(notes(), {"tool": "timer", "amount": 4}) == talks.CALL_S
    assert talks.call_seconds(notes(), {"tool": "calculate", "expression": "7 * 8"}) == 0.2
    meta = {"prices": {"milk": (3, "kitchen")}, "time": "12:07", "delegations": notes()}
    tools = talks.TimedToolbox(talks.session_tools(meta))
    calls = [json.dumps(call), '{"tool": "timer", "amount": 1, "unit": "seconds"}', "no call"]
    running = [tools.start(text) for text in calls]
    assert not running[0].done() and not running[1].done() and running[2].done()
    while not (running[0].done() and running[1].done()):
        time.sleep(0.01)
    assert json.loads(running[0].result()) == {"result": 21}
    texts, seconds = zip(*tools.seconds(), strict=True)
    assert list(texts) == calls
    assert 0.3 <= seconds[0] < 0.9 < 1.0 <= seconds[1] < 3 and seconds[2] < 0.1


def test_tools_of_a_session_know_its_time_and_table() -> None:
    meta = {"prices": {"milk": (3, "kitchen")}, "time": "12:07", "delegations": []}
    tools = {one.name: one for one in talks.session_tools(meta)}
    done = threading.Event()

    def wait_less(seconds: float) -> None:
        done.set()

    original, time.sleep = time.sleep, wait_less
    try:
        assert tools["clock"].function() == "12:07" and done.is_set()
        assert tools["lookup"].function(item="milk", field="place") == "kitchen"
    finally:
        time.sleep = original


def test_only_tools_after_the_last_update_count() -> None:
    one = Delegation(1, "seven times eight", 10)
    two = Delegation(2, "seven times eight", 40)
    one.steps = [Step(12, CALL, "a"), Step(20, delegations.UPDATED, "nine"), Step(22, CALL, "b")]
    two.steps = [Step(42, CALL, "a"), Step(50, CALL, "c")]
    calls = [("a", 1.0), ("b", 2.0), ("a", 4.0), ("c", 8.0), ("d", 16.0)]
    assert talks.tool_seconds([one, two], calls) == {1: 2.0, 2: 12.0}


def test_the_background_model_beside_a_live_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RELEASED", tmp_path)
    assert agent_factory.find_background("demo") is None
    (tmp_path / "first_demo_background").mkdir()
    for name in ("demo", "first_demo"):  # the first pair stands in for the present one
        assert agent_factory.find_background(name) == str(tmp_path / "first_demo_background")
    live = tmp_path / "own" / "live"
    live.mkdir(parents=True)
    assert agent_factory.find_background(str(live)) is None
    live.with_name("live_background").mkdir()
    assert agent_factory.find_background(str(live)) == str(live.with_name("live_background"))


# Lanes.


def test_a_lane_shows_what_happened() -> None:
    one = Delegation(1, "price of butter", 4)
    one.steps = [
        Step(6, agent.CALL, '{"tool": "lookup", "item": "butter", "field": "price"}'),
        Step(9, delegations.UPDATED, "the pepper"),
        Step(11, agent.CALL, '{"tool": "lookup", "item": "pepper", "field": "price"}'),
        Step(16, agent.RESULT, '{"result": 58}'),
        Step(20, delegations.GIVEN, ""),
    ]
    one.arrivals = [(18, (9, 10))]
    two = Delegation(2, "the time", 10, [Step(14, delegations.CANCELLED, "")])
    far = Delegation(3, "the time", 60, [Step(61, agent.FAILED, "it took too long")])
    said = [Said(Utterance(22, 25, "it is"), delegation=1)]
    lanes = make_lanes([one, two, far], said, 20.0)
    assert [lane.row for lane in lanes] == [0, 1, 0] and depth(lanes) > depth(lanes[:1]) > 0
    kinds = [bar.kind for bar in lanes[0].bars]
    assert kinds == [THINKING, TOOL, THINKING, TOOL, THINKING, WAITING, SAID]
    starts = [round(5 * bar.start_s) - 1 for bar in lanes[0].bars]
    assert starts == [4, 6, 9, 11, 16, 18, 22] and lanes[0].end_s == pytest.approx(5.4)
    assert [label.text for label in lanes[0].requests] == ["price of butter", "the pepper"]
    assert lanes[0].calls[1].text == "lookup(pepper, price) → 58"
    assert "corrected: the pepper" in summary(lanes[0]) and "said after 3.6 s" in summary(lanes[0])
    assert lanes[1].cancelled_s == pytest.approx(3.0) == lanes[1].end_s
    assert summary(lanes[1]) == "cancelled after 0.8 s"
    assert "failed: it took too long" in summary(lanes[2]) and lanes[2].end_s == 20.0
    assert depth([]) == 0


def test_odd_calls_are_shown_as_they_are() -> None:
    assert brief_call("what is this") == "what is this" and brief_call("[1]") == "[1]"
    assert brief_call('{"tool": "timer", "amount": 5, "unit": "seconds"}') == "timer(5, seconds)"
    assert brief_result('{"error": "no such item"}') == "error: no such item"
    assert brief_result("3") == "3"
