"""Lets a model talk to recorded users in real time, with a background agent and its tools."""

import copy
import dataclasses
import datetime
import json
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from interaction.background.agent import CALL, BackgroundAgent
from interaction.background.demo_tools import Row, demo_tools
from interaction.background.tool import Tool
from interaction.background.toolbox import Toolbox, ToolCall
from interaction.engine import replay, session_record
from interaction.engine.conversation import Conversation
from interaction.engine.session_record import Model
from interaction.evaluation.delegation import Recording
from interaction.evaluation.delegation_history import Delegation, read_delegations
from interaction.evaluation.events import TURN_S, parse_events
from interaction.evaluation.joined import notes_at
from interaction.evaluation.rollout import TURN, to_float
from interaction.evaluation.scoring import Spoken
from interaction.types import Reply

MakeAgent = Callable[[Toolbox], BackgroundAgent]
TAIL_S = 6.0  # of silence after a user, in which results may still come
CALL_S = 1.0  # a call that nobody foresaw takes this long


class Talk(NamedTuple):
    """What came of one conversation, micro-turn by micro-turn."""

    audio: np.ndarray  # float32[turns * 3200]; reply n plays from 0.2 (n + 1) s
    text: np.ndarray  # int32[turns]
    user_transcript: np.ndarray  # int32[turns, slots], the user's words as the model heard them
    step_s: np.ndarray  # float64[turns], wall time of the model's step
    driver_s: np.ndarray  # float64[turns], of what the conversation does beside it
    missed: int  # replies that were not there when the next micro-turn began
    missed_beside: int  # of them, those that would have been without `driver_s`
    recorded: bool  # whether the record is complete; True if there is none


def talk(
    model: Model,
    agent: BackgroundAgent | None,
    user: np.ndarray,
    seed: int,
    record: pathlib.Path | None = None,
    tail_s: float = TAIL_S,
    on_turn: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Talk:
    """Plays a user to a model, a micro-turn every 200 ms.

    Args:
      model: As returned by `interaction.load`.
      agent: Whom it may ask; it is closed at the end.
      user: PCM, int16[n] or float32[n] at 16 kHz; an incomplete micro-turn is filled with silence.
      seed: Of the model's sampling.
      record: File for the record, which must not exist.
      tail_s: Silence to go on listening for after the user.
      on_turn: Called after each micro-turn.
      clock: Seconds from anywhere on.
      sleep: Waits so many seconds.
    """
    turns = -(-len(user) // TURN) + round(tail_s / TURN_S)
    pcm = np.zeros(turns * TURN, np.float32)
    pcm[: len(user)] = to_float(user)
    conversation = Conversation(model, agent, seed, record)
    replies: list[Reply] = []
    times, beside = [], 0
    start = clock()

    def take(reply: Reply) -> None:
        nonlocal beside
        replies.append(reply)
        stats = conversation.stats
        times.append((stats.step_s, stats.driver_s))
        late = clock() - start - TURN_S * len(replies)
        beside += 0 < late <= stats.driver_s
        if on_turn is not None:
            on_turn()

    try:
        conversation.run(iter(pcm.reshape(turns, TURN)), take, clock, sleep)
    finally:
        recorded = conversation.close()
    step_s, driver_s = np.asarray(times).T
    return Talk(
        np.concatenate([reply.audio for reply in replies]).astype(np.float32),
        np.asarray([int(reply.text) for reply in replies], np.int32),
        np.stack([np.asarray(reply.user_transcript) for reply in replies]),
        step_s,
        driver_s,
        conversation.stats.missed,
        beside,
        recorded,
    )


# Tools of a session.


class TimedToolbox(Toolbox):
    """A toolbox that keeps its calls, to be asked how long they took."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._lock = threading.Lock()
        self._calls: list[tuple[str, ToolCall]] = []

    def start(self, call_text: str) -> ToolCall:
        """See `Toolbox`."""
        call = super().start(call_text)
        with self._lock:
            self._calls.append((call_text, call))
        return call

    def seconds(self) -> list[tuple[str, float]]:
        """Text of each call in order, and how long it took."""
        with self._lock:
            return [(text, call.seconds) for text, call in self._calls]


def call_seconds(notes: Sequence[Mapping[str, Any]], call: Mapping[str, Any]) -> float:
    """How long a call takes that is answered as a session's notes foresee.

    A note has the call of the errand's last form alone; another call of the same tool is taken for
    that of a form before it, or for this one, misunderstood.
    """
    for note in notes:
        if note["call"] == call:
            return note["tool_s"]
    for note in notes:
        if note["call"]["tool"] == call["tool"]:
            return note["tool_s"]
    return CALL_S


def session_tools(meta: Mapping[str, Any], turn: Callable[[], int] = lambda: 0) -> list[Tool]:
    """The demo's tools with the table, the time and the delays of a session.

    Args:
      meta: Of an errand session: "prices", "time", "delegations"; or of several, as `join_metas`
        returns it: they have one table and one time, and calls take as long as the notes of the
        part say that runs when they are made.
      turn: Gives the micro-turn that runs.
    """
    rows = [Row(item, price, place) for item, (price, place) in meta["prices"].items()]
    hour, minute = map(int, meta["time"].split(":"))
    now = datetime.datetime(2000, 1, 1, hour, minute)
    tools = demo_tools(rows, now=lambda: now)
    return [slow_tool(one, lambda: notes_at(meta, turn())) for one in tools]


def slow_tool(tool: Tool, notes: Callable[[], Sequence[Mapping[str, Any]]]) -> Tool:
    """The same tool, which takes as long as the notes say; a timer takes its own time."""
    if tool.name == "timer":
        return tool
    slow, function = copy.copy(tool), tool.function

    def wait(**arguments: Any) -> Any:  # noqa: ANN401
        time.sleep(call_seconds(notes(), {"tool": tool.name, **arguments}))
        return function(**arguments)

    slow.function = wait
    return slow


# Many sessions.


@dataclasses.dataclass
class TurnCount:
    """Counts the micro-turns of a talk when it is called after each."""

    on_turn: Callable[[], object] | None  # is called after each as well
    turns: int = 0

    def __call__(self) -> None:
        """Counts one."""
        self.turns += 1
        if self.on_turn is not None:
            self.on_turn()


def run_sessions(
    model: Model,
    make_agent: MakeAgent,
    sessions: Sequence[tuple[np.ndarray, str]],
    seed: int,
    folder: pathlib.Path,
    at_once: int = 4,
    tail_s: float = TAIL_S,
    on_turn: Callable[[], object] | None = None,
) -> list[pathlib.Path]:
    """Talks to users in real time, some at once, and records what happens.

    Args:
      model: Serves all of them.
      make_agent: Gives a session its agent, with the toolbox that it may use.
      sessions: PCM of each user and the session's meta, as `make_delegation_session` makes them or
        `join_users` and `join_metas` join them.
      seed: Session i samples with a seed made of this and i.
      folder: For the records, in which there is none yet.
      at_once: Conversations.
      tail_s: See `talk`.
      on_turn: Called after each micro-turn, on several threads.

    Returns:
      The records: each NAME.session has what else is known beside it, in NAME.json.

    Raises:
      ValueError: The folder has records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.session")):
        raise ValueError(f"records: got {folder}, which has some; remove it or choose another one")

    seeds = [
        int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) % 2**31
        for index in range(len(sessions))
    ]
    Conversation(model, seed=seeds[0]).close()  # compiles once, and not on every thread

    def one(index: int) -> pathlib.Path:
        if index < at_once:  # so that not all steps fall on the same moment
            time.sleep(TURN_S * index / at_once)
        user, meta = sessions[index]
        known = json.loads(meta)
        count = TurnCount(on_turn)
        tools = TimedToolbox(session_tools(known, lambda: count.turns))
        path = folder / f"{index:05d}.session"
        done = talk(model, make_agent(tools), user, seeds[index], path, tail_s, count)
        beside = {
            "meta": known,
            "calls": tools.seconds(),
            "recorded": done.recorded,
            "missed": done.missed,
            "missed_beside": done.missed_beside,
            "step_s": np.round(done.step_s, 6).tolist(),
            "driver_s": np.round(done.driver_s, 6).tolist(),
        }
        path.with_suffix(".json").write_text(json.dumps(beside) + "\n")
        return path

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, range(len(sessions))))


def read_recording(path: pathlib.Path, decode: Callable[[Sequence[int]], str]) -> Recording:
    """What `run_sessions` recorded, ready to be scored.

    Args:
      path: Of the record.
      decode: Ids to words.

    Raises:
      ValueError: The record or what is beside it cannot be read.
    """
    entries = session_record.read(path).entries
    beside = json.loads(path.with_suffix(".json").read_text())
    text = np.asarray([entry.text for entry in entries], np.int32)
    audio = np.concatenate([entry.speech for entry in entries])
    found = read_delegations(entries)
    return Recording(
        text=text,
        spoken=Spoken.from_reply(audio, text, decode),
        events=parse_events(json.dumps(beside["meta"])),
        notes=beside["meta"]["delegations"],
        delegations=found,
        tools_s=tool_seconds(found, beside["calls"]),
    )


def tool_seconds(
    delegations: Sequence[Delegation], calls: Sequence[tuple[str, float]]
) -> dict[int, float]:
    """Seconds that the tools of each delegation's last form took, by its number.

    Args:
      delegations: As they happened.
      calls: Text and seconds of every call, in order; those of one text are told apart by it.
    """
    left = list(calls)
    found: dict[int, float] = {}
    made = [
        (step.turn, one, step.text)
        for one in delegations
        for step in one.steps
        if step.kind == CALL
    ]
    for turn, one, text in sorted(made, key=lambda call: call[0]):
        match = next((call for call in left if call[0] == text), None)
        if match is None:
            continue
        left.remove(match)
        if turn > one.settled:
            found[one.number] = found.get(one.number, 0.0) + match[1]
    return found


# Figures of the run.


def run_figures(paths: Sequence[pathlib.Path], model: Model, replays: int) -> dict[str, Any]:
    """What is known of a run beside what was said.

    Args:
      paths: Records of `run_sessions`.
      model: The one that made them.
      replays: Records to run again, at most.

    Returns:
      "deadline_misses" of 200 ms, "deadline_misses_background" (those that would have been none
      without what a conversation does beside the model's step), "turns", "step_p50_ms" and
      "step_p99_ms" of the model's steps, the same "_while_waiting" for a result,
      "own_p99_ms" and "own_max_ms" of what is done beside, "records_incomplete", and
      "replays_bit_equal" as "n of m" with "replay_differences".
    """
    beside = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    step_ms = [1_000 * np.asarray(one["step_s"]) for one in beside]
    driver_ms = 1_000 * np.concatenate([one["driver_s"] for one in beside])
    waits = []
    for path, steps in zip(paths, step_ms, strict=True):
        found = read_delegations(session_record.read(path).entries)
        waits.append([any(one.running(turn) for one in found) for turn in range(len(steps))])
    every = np.concatenate(step_ms)
    waiting = every[np.concatenate(waits).astype(bool)]
    figures: dict[str, Any] = {
        "deadline_misses": sum(one["missed"] for one in beside),
        "deadline_misses_background": sum(one["missed_beside"] for one in beside),
        "turns": len(every),
        "driver_p99_ms": float(np.percentile(driver_ms, 99)),
        "driver_max_ms": float(driver_ms.max()),
        "records_incomplete": sum(not one["recorded"] for one in beside),
    }
    for name, values in (("", every), ("_while_waiting", waiting)):
        for percent in (50, 99):
            value = float(np.percentile(values, percent)) if len(values) else None
            figures[f"step_p{percent}_ms{name}"] = value
    again = [(path, replay.replay(path, model)) for path in paths[:replays]]
    equal = sum(one.equal and one.complete for _, one in again)
    figures["replays_bit_equal"] = f"{equal} of {len(again)}"
    figures["replay_differences"] = [
        f"{path.name}: {one.difference or one.problem}"
        for path, one in again
        if one.difference or one.problem
    ]
    return figures
