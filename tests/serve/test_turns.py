"""How a stream of micro-turns is shown as items and responses; the expectations are by hand."""

from typing import Any

import numpy as np
import pytest

from interaction.serve.outbox import Speech
from interaction.serve.realtime.realtime_messages import Settings
from interaction.serve.realtime.turns import Turns

LOUD, STILL = np.full(3_200, 0.1, np.float32), np.zeros(3_200, np.float32)


class Box:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def put(self, item: Any) -> None:
        self.items.append(item.event if isinstance(item, Speech) else item)

    def short(self) -> list[str]:
        """The kinds of events since the last call, without those that only end or begin others."""
        found, self.items = self.items, []
        self.done = [one["response"] for one in found if one["type"] == "response.done"]
        wanted = ("response.created", "response.done", "speech", "committed", "delta", "completed")
        kinds = [one["type"] for one in found]
        return [kind.split(".")[-1] for kind in kinds if any(name in kind for name in wanted)]


def turns(**config: Any) -> tuple[Turns, Box]:
    box = Box()
    return Turns(box, Settings(config), 0.2), box  # type: ignore[arg-type]


def run(one: Turns, script: str) -> None:
    """One micro-turn a letter: `m` the model speaks, `u` a user's word, `b` both, `.` silence."""
    for letter in script:
        one.reply(LOUD if letter in "mb" else STILL)
        if letter in "ub":
            one.hear(" word")


def test_a_response_lasts_from_the_first_speech_to_three_silent_micro_turns() -> None:
    one, box = turns()
    run(one, "..mm..m")
    assert box.short() == ["created"] + ["delta"] * 5
    run(one, "..")
    assert box.short() == ["delta"] * 2
    run(one, ".")
    assert box.short() == ["delta", "done"]
    assert box.done[0]["status"] == "completed"
    run(one, "....")
    assert box.short() == []


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("uu..mmmm...", "completed"),  # the user before, the model after
        ("mmmbb...", "cancelled"),  # the model stops when the user speaks
        ("mmm.u..", "cancelled"),  # its word is read when the model has just stopped
        ("mmbmmmmmm...", "completed"),  # "uh-huh": the model goes on
        ("ummm...", "completed"),  # it began after the user
    ],
)
def test_a_response_that_the_user_stopped_is_cancelled(script: str, status: str) -> None:
    one, box = turns()
    run(one, script)
    assert "done" in box.short()
    assert [done["status"] for done in box.done] == [status]
    reason = (box.done[0]["status_details"] or {}).get("reason")
    assert reason == ("turn_detected" if status == "cancelled" else None)


def test_an_utterance_lasts_to_three_micro_turns_without_a_word() -> None:
    one, box = turns(audio={"input": {"transcription": {}}})
    run(one, ".u..u")
    assert box.short() == ["speech_started", "delta", "delta"]
    run(one, "...")
    assert box.short() == []  # the third one may still have a word
    run(one, ".")
    assert box.short() == ["speech_stopped", "committed", "completed"]


def test_a_client_that_detects_turns_commits_them() -> None:
    one, box = turns(audio={"input": {"transcription": {}, "turn_detection": None}})
    run(one, ".u....")
    assert box.short() == ["delta"]
    one.commit()
    assert box.short() == ["committed"]
    run(one, "u..")
    assert box.short() == ["delta"]  # the last word was on its way
    run(one, "..")
    assert [one["transcript"] for one in box.items if "transcript" in one] == ["word word"]


def test_a_response_that_was_asked_for_waits_for_the_model() -> None:
    one, box = turns()
    one.create_response()
    run(one, "." * 10 + "m...")
    assert box.short() == ["created"] + ["delta"] * 4 + ["done"]
    one.create_response()
    run(one, "." * 24)
    assert box.short() == ["created"]
    run(one, ".")
    assert box.short() == ["done"] and box.done[0]["output"] == []


def test_metadata_of_the_client_comes_back() -> None:
    one, box = turns()
    one.create_response({"key": "value"})
    run(one, "m...")
    told = [event["response"]["metadata"] for event in box.items if "response" in event]
    assert told == [{"key": "value"}] * 2  # response.created, response.done


def kinds_of_speech(box: Box) -> list[str]:
    return [kind for kind in box.short() if kind in ("speech_started", "speech_stopped")]


@pytest.mark.parametrize("end", ["commit", "clear"])
def test_speech_that_started_is_told_to_stop_once(end: str) -> None:
    one, box = turns()
    run(one, "u")
    getattr(one, end)()
    run(one, ".....")
    assert kinds_of_speech(box) == ["speech_started", "speech_stopped"]


def test_a_change_of_detection_leaves_no_speech_open() -> None:
    one, box = turns()
    run(one, "u")
    one.settings = Settings({"audio": {"input": {"turn_detection": None}}})
    run(one, ".....")
    assert kinds_of_speech(box) == ["speech_started", "speech_stopped"]
    run(one, "u")
    one.settings = Settings({})
    run(one, ".....")
    assert kinds_of_speech(box) == []


def test_two_quick_commits_are_two_items() -> None:
    one, box = turns(audio={"input": {"turn_detection": None}})
    for _ in range(2):
        run(one, "u")
        one.commit()
    run(one, ".....")
    items = [event["item_id"] for event in box.items if event["type"].endswith("committed")]
    done = [event["item"] for event in box.items if event["type"] == "conversation.item.done"]
    assert [item["id"] for item in done] == items and len(set(items)) == 2


TOOL = {
    "type": "function",
    "name": "f",
    "parameters": {"properties": {"request": {"type": "string"}}},
}


def test_a_call_after_the_tools_are_gone_keeps_its_name() -> None:
    one, box = turns(tools=[TOOL])
    one.call("delegation_1", "what time is it")
    one.settings = Settings({})
    one.call("delegation_2", "what time is it (corrected: there)")
    box.short()
    assert [done["output"][0]["name"] for done in box.done] == ["f", "f"]


def test_a_call_in_a_response_is_its_second_item() -> None:
    one, box = turns(tools=[TOOL])
    run(one, "m")
    one.call("delegation_1", "what time is it")
    run(one, "m...")
    box.short()
    first, second = box.done[0]["output"]
    assert (first["type"], second["type"]) == ("message", "function_call")
    assert second["arguments"] == '{"request": "what time is it"}'
