"""Sessions joined into a long one: its clock, its replies, and conversations with tools."""

import json
import pathlib
import time

import numpy as np
import pytest

from experiments import evaluate
from interaction.background.scripted import ScriptedAgent
from interaction.background.toolbox import Toolbox
from interaction.data.delegation_sessions import make_delegation_session
from interaction.evaluation import parse_events, talk as talks
from interaction.evaluation.delegation import DelegationScore, Judged
from interaction.evaluation.delegation_summary import summarise_joined
from interaction.evaluation.joined import cut_replies, join_metas, join_users, notes_at, place_name
from interaction.evaluation.rollout import Rollout
from interaction.types import Special
from tests.evaluation.oracles import Clock, LiveOracle, as_foreseen

TURN = 3_200


def event(**more: object) -> dict:
    made = {"kind": "tool_request", "form": "times", "start_s": 1.5, "end_s": 2.25, "text": "a"}
    made |= {"answer": "let me see", "answer_turn": 12, "answer_end_turn": 20}
    return made | {"answer_end_s": 4.1, "pauses": [[1.7, 2.0]], "delegation": 1} | more


def aside(start_s: float) -> dict:
    made = {"kind": "side_speech", "form": "side_speech", "start_s": start_s, "end_s": start_s + 1}
    made |= {"answer": "", "answer_turn": -1, "answer_end_turn": -1, "answer_end_s": -1.0}
    return made | {"pauses": []}


def note(number: int, **more: object) -> dict:
    made = {
        "number": number,
        "tool_request": "times",
        "updates": [],
        "cancelled_s": -1.0,
        "closed": 24,
    }
    made |= {"said_turn": -1, "said_end_s": -1.0, "tool_s": 2.0}
    return made | {"call": {"tool": "clock"}} | more


def metas() -> list[dict]:
    """Three parts of 80, 60 and 80 micro-turns with 2, 1 and 0 delegations."""
    made = {"voice": "espeak:en+m3:150:50:1", "prices": {"milk": [3, "kitchen"]}, "time": "1:07"}
    fixed = note(1, updates=[{"end_s": 7.5, "words": "nine"}], said_turn=50, said_end_s=11.9)
    first = [event(), aside(0.0), event(start_s=6.0, end_s=7.0, delegation=2)]
    return [
        made | {"turns": 80, "events": first, "delegations": [note(1), note(2, cancelled_s=9.1)]},
        made | {"turns": 60, "events": [event()], "delegations": [fixed]},
        made | {"turns": 80, "events": [aside(0.5)], "delegations": []},
    ]


def test_events_of_later_parts_are_on_the_clock_of_the_long_session() -> None:
    """With gaps of 30 micro-turns the second part begins at 110 (22 s), the third at 200 (40 s)."""
    got = join_metas(metas(), gap=30)
    assert got["turns"] == 80 + 30 + 60 + 30 + 80 and got["part_turns"] == [110, 90, 80]
    assert got["events"][:3] == metas()[0]["events"]
    later = got["events"][3]
    assert later["start_s"] == 23.5 and later["end_s"] == 24.25 and later["answer_end_s"] == 26.1
    assert later["answer_turn"] == 122 and later["answer_end_turn"] == 130
    assert later["pauses"] == [[23.7, 24.0]] and later["delegation"] == 3
    last = got["events"][4]
    assert last["start_s"] == 40.5 and last["end_s"] == 41.5 and "delegation" not in last
    assert last["answer_turn"] == last["answer_end_turn"] == last["answer_end_s"] == -1
    assert parse_events(json.dumps(got))[-1].start_s == 40.5


def test_notes_of_later_parts_are_on_the_clock_of_the_long_session() -> None:
    got = join_metas(metas(), gap=30)
    first, second, third = got["delegations"]
    assert [one["number"] for one in (first, second, third)] == [1, 2, 3]
    assert second["cancelled_s"] == 9.1 and second["closed"] == 24 and second["said_turn"] == -1
    assert third["closed"] == 134 and third["said_turn"] == 160 and third["said_end_s"] == 33.9
    assert third["updates"] == [{"end_s": 29.5, "words": "nine"}] and third["cancelled_s"] == -1
    assert third["tool_s"] == 2.0
    assert [one["part_end_s"] for one in (first, second, third)] == [22.0, 22.0, 40.0]
    assert got["time"] == "1:07" and len(got["voices"]) == 3


def test_notes_are_those_of_the_current_part() -> None:
    got = join_metas(metas(), gap=30)
    numbers = {turn: [one["number"] for one in notes_at(got, turn)] for turn in (0, 109, 110, 199)}
    assert numbers == {0: [1, 2], 109: [1, 2], 110: [3], 199: [3]}
    assert notes_at(got, 200) == notes_at(got, 999) == []
    assert len(notes_at(metas()[0], 999)) == 2, "a session without parts"


def test_a_tool_takes_as_long_as_the_current_part_says(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = metas()
    parts[1]["delegations"][0]["tool_s"] = 5.0
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for turn in (30, 150, 250):
        tools = talks.session_tools(join_metas(parts, gap=30), lambda now=turn: now)
        clock = next(one for one in tools if one.name == "clock")
        assert clock.function() == "1:07"
    assert slept == [2.0, 5.0, talks.CALL_S]


def test_parts_with_different_prices_or_times_are_refused() -> None:
    for name, value in (("time", "2:07"), ("prices", {"milk": [4, "kitchen"]})):
        parts = metas()
        parts[1][name] = value
        with pytest.raises(ValueError, match="metas: got other prices or another time in part 1"):
            join_metas(parts, gap=30)


def test_users_follow_one_another_with_silence_between() -> None:
    users = [np.full(2 * TURN, 7, np.int16), np.full(TURN, 8, np.int16), np.full(9, 9, np.int16)]
    got = join_users(users, gap=1)
    assert got.dtype == np.int16
    wanted = [7] * 2 * TURN + [0] * TURN + [8] * TURN + [0] * TURN + [9] * 9
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(join_users(users[-1:], gap=1), users[-1])
    with pytest.raises(ValueError, match="users: got 9 samples in recording 0, wanted a multiple"):
        join_users(users[::-1])


def test_replies_are_cut_where_the_next_user_begins() -> None:
    text, user_transcript = np.arange(5), np.arange(10).reshape(5, 2)
    whole = Rollout(np.repeat(text, TURN).astype(np.float32), text, user_transcript, text / 10)
    first, second = cut_replies(whole, [2, 3])
    assert first.text.tolist() == [0, 1] and second.text.tolist() == [2, 3, 4]
    assert set(first.audio) == {0, 1} and len(first.audio) == 2 * TURN
    assert set(second.audio) == {2, 3, 4} and len(second.audio) == 3 * TURN
    assert second.user_transcript.tolist() == [[4, 5], [6, 7], [8, 9]]
    assert second.step_s.tolist() == [0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match=r"turns: got \[2, 2\], 4 together, wanted 5"):
        cut_replies(whole, [2, 2])


def test_places_are_thirds() -> None:
    shares = {0.0: "first", 0.33: "first", 0.34: "middle", 0.66: "middle", 0.67: "last"}
    assert {share: place_name(share).split()[0] for share in shares} == shares
    assert place_name(1.0) == "last third"


def test_delegations_by_place_and_by_wait() -> None:
    judged = [
        Judged("result", True, "times", place=0.1),
        Judged("result", False, "timer", place=0.2, later=True),
        Judged("result", True, "timer", place=0.9, later=True),
        Judged("result", False, "times", place=0.9, excluded="the session ended"),
        Judged("recall", False, "times", place=0.5),
    ]
    got = summarise_joined([DelegationScore(judged[:2], 1, 1), DelegationScore(judged[2:], 1, 1)])
    results = got["by_place"]["result_spoken_exact"]
    assert {name: (one["rate"], one["n"]) for name, one in results.items()} == {
        "first third": (0.5, 2),
        "last third": (1.0, 1),
    }
    assert got["by_place"]["delegation_recall"]["middle third"]["rate"] == 0
    waits = got["by_wait"]["result_spoken_exact"]
    assert (waits["due_in_part"]["rate"], waits["due_in_part"]["n"]) == (1.0, 1)
    assert (waits["due_later"]["rate"], waits["due_later"]["n"]) == (0.5, 2)


# A long conversation with a model that is always right.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs conversations without waiting."""

    def run(*args: object, **more: object) -> talks.Talk:
        clock = Clock()
        return whole(*args, **more, clock=clock, sleep=clock.sleep)

    whole = talks.talk
    monkeypatch.setattr(talks, "talk", run)


def test_calls_in_a_conversation_take_as_long_as_the_current_part_says(
    tmp_path: pathlib.Path, quick: None
) -> None:
    """Two silent parts of 10 micro-turns, with a call in the middle of each."""
    parts = [meta | {"turns": 10, "events": []} for meta in metas()[:2]]
    parts[0]["delegations"], parts[1]["delegations"] = [note(1, tool_s=0.0)], [note(1, tool_s=0.4)]
    silence = {"model": np.zeros(20 * TURN, np.int16), "text": np.full(20, Special.SILENT)}
    boxes, turns = [], []

    def make(toolbox: Toolbox) -> ScriptedAgent:
        boxes.append(toolbox)
        return ScriptedAgent({})

    def call_in_the_middle() -> None:
        turns.append(len(turns))
        if len(turns) in (5, 15):
            call = boxes[0].start('{"tool": "clock"}')
            while not call.done():
                time.sleep(0.01)

    seed = int(np.random.SeedSequence([3, 0]).generate_state(1)[0]) % 2**31
    session = np.zeros(20 * TURN, np.int16), json.dumps(join_metas(parts, 0))
    (path,) = talks.run_sessions(
        LiveOracle({seed: silence}), make, [session], 3, tmp_path, 1, 0.0, call_in_the_middle
    )
    (_, first), (_, second) = json.loads(path.with_suffix(".json").read_text())["calls"]
    assert len(turns) == 20 and first < 0.2 and 0.4 <= second < 1.5


def long_talk(seed: int, count: int) -> tuple[dict, dict]:
    """The right replies to `count` users with gaps of 6 s, and the joined meta."""
    records = [make_delegation_session((seed, 0), "heldout")]
    first = json.loads(records[0]["meta"])
    records += [make_delegation_session((seed, i), "heldout", like=first) for i in range(1, count)]
    silence = {"model": np.zeros(30 * TURN, np.int16), "text": np.full(30, Special.SILENT)}
    parts = [part for record in records for part in (record, silence)][:-1]
    replies = {name: np.concatenate([part[name] for part in parts]) for name in silence}
    return replies, join_metas([json.loads(record["meta"]) for record in records], 30)


def test_a_long_conversation_is_scored_like_its_parts(
    tmp_path: pathlib.Path, quick: None, capsys: pytest.CaptureFixture
) -> None:
    seed, count = 7, 3  # sessions with a cancellation, in which all requests are different
    replies, meta = long_talk(seed, count)
    words = [one["request"] for one in meta["delegations"]]
    assert len(set(words)) == len(words) >= 3
    live = LiveOracle(
        {int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]) % 2**31: replies}
    )
    folder = tmp_path / "records"
    figures = evaluate.run_delegations(
        live, lambda tools: ScriptedAgent(as_foreseen(meta)), count, seed, 1, folder, joined=count
    )
    json.dumps(figures)
    evaluate.show_delegations(figures)
    printed = capsys.readouterr().out
    for key in ("delegation_recall", "delegation_precision", "request_exact", "cancel_rate"):
        assert figures[key] == 1 and key in printed, key
    assert "result_spoken_exact, last third" in printed
    assert "result_spoken_exact, due in part" in printed
    assert figures["delegations"] == len(words) and figures["counts"]["sessions"] == 1
    assert figures["turns"] == count * (80 + 30) and figures["replays_bit_equal"] == "1 of 1"
    told = figures["by_wait"]["result_spoken_exact"]["due_in_part"]
    done = sum(one["said_turn"] >= 0 for one in meta["delegations"])
    assert 2 <= done <= told["n"] and told["rate"] == pytest.approx(done / told["n"])
    recalls = figures["by_place"]["delegation_recall"].values()
    asked = [e for e in meta["events"] if e["kind"] == "tool_request"]
    thirds = [sum(int(e["start_s"] // 22) == part for e in asked) for part in range(count)]
    assert [one["n"] for one in recalls] == [n for n in thirds if n]
