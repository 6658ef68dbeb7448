"""Plays recorded users to a model in real time, with a background agent and its tools."""

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
from interaction.engine.rows import BatchModel
from interaction.evaluation.delegation import Recording
from interaction.evaluation.delegation_history import Delegation, read_delegations
from interaction.evaluation.events import TURN_S, parse_events
from interaction.evaluation.joined import notes_at
from interaction.evaluation.rollout import TURN, to_float
from interaction.evaluation.scoring import Spoken
from interaction.types import Reply

MakeAgent = Callable[[Toolbox], BackgroundAgent]
TAIL_S = 6.0  # s of silence after a user, in which results may still come
CALL_S = 1.0  # s that a call takes if the annotation does not have it


class Talk(NamedTuple):
    """The replies of a model in one conversation, and their timing."""

    audio: np.ndarray  # float32[turns * 3200], PCM; reply n plays from 0.2 (n + 1) s on
    text: np.ndarray  # int32[turns], text-out tokens
    user_transcript: np.ndarray  # int32[turns, slots], the model's transcript of the user
    step_s: np.ndarray  # float64[turns], wall time of the model's step, s
    driver_s: np.ndarray  # float64[turns], wall time of the rest of the conversation's work, s
    missed: int  # replies that were not ready when the next micro-turn began
    missed_beside: int  # those of them that would have been ready without `driver_s`
    recorded: bool  # whether the record is complete; True without a record


def talk(
    model: BatchModel,
    agent: BackgroundAgent | None,
    user: np.ndarray,
    seed: int,
    record: pathlib.Path | None = None,
    tail_s: float = TAIL_S,
    on_turn: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Talk:
    """Plays a user to a model, one micro-turn every 200 ms.

    Args:
      model: From `interaction.load`.
      agent: Background agent, None for none; it is closed at the end.
      user: PCM, int16[n] or float32[n] at 16 kHz; an incomplete micro-turn is filled with silence.
      seed: Seed of the model's sampling.
      record: File for the record, which must not exist; None for no record.
      tail_s: Silence after the user, s.
      on_turn: Called after each micro-turn.
      clock: Gives the time in s, from any origin.
      sleep: Waits for a number of s.

    Returns:
      All replies, audio float32[turns * 3200] and text int32[turns] among them.
    """
    turns = -(-len(user) // TURN) + round(tail_s / TURN_S)
    pcm = np.zeros(turns * TURN, np.float32)
    pcm[: len(user)] = to_float(user)
    conversation = Conversation(model, agent, seed, record, clock=clock, sleep=sleep)
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
        conversation.play(iter(pcm.reshape(turns, TURN)), take)
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
    """A toolbox that measures the time of its calls."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """See `Toolbox`."""
        super().__init__(tools)
        self._lock = threading.Lock()
        self._calls: list[tuple[str, ToolCall]] = []

    def start(self, call_text: str, started: float | None = None) -> ToolCall:
        """See `Toolbox`."""
        call = super().start(call_text, started)
        with self._lock:
            self._calls.append((call_text, call))
        return call

    def seconds(self) -> list[tuple[str, float]]:
        """The text of each call and its time in s, in the order of the calls."""
        with self._lock:
            return [(text, call.seconds) for text, call in self._calls]


def call_seconds(notes: Sequence[Mapping[str, Any]], call: Mapping[str, Any]) -> float:
    """The time that a call takes by the annotation of a session, s.

    A note has only the last call of its delegation. Any other call of the same tool takes the same
    time: it belongs to the request before a correction, or to a misunderstood request.

    Args:
      notes: "delegations" of the session's meta.
      call: "tool" and its arguments.

    Returns:
      The time of the note; CALL_S if no note has this tool.
    """
    for note in notes:
        if note["call"] == call:
            return note["tool_s"]
    for note in notes:
        if note["call"]["tool"] == call["tool"]:
            return note["tool_s"]
    return CALL_S


def session_tools(meta: Mapping[str, Any], turn: Callable[[], int] = lambda: 0) -> list[Tool]:
    """The tools of the demo with the prices, the time of day and the delays of a session.

    Args:
      meta: Meta of a session with delegations: "prices", "time", "delegations". It may come from
        `join_metas`; then the delays are those of the part in which a call is made.
      turn: Gives the number of the current micro-turn.
    """
    rows = [Row(item, price, place) for item, (price, place) in meta["prices"].items()]
    hour, minute = map(int, meta["time"].split(":"))
    now = datetime.datetime(2000, 1, 1, hour, minute)
    tools = demo_tools(rows, now=lambda: now)
    return [slow_tool(one, lambda: notes_at(meta, turn())) for one in tools]


def slow_tool(tool: Tool, notes: Callable[[], Sequence[Mapping[str, Any]]]) -> Tool:
    """The same tool with the delay that the notes say; a timer keeps its own time."""
    if tool.name == "timer":
        return tool
    slow, function = copy.copy(tool), tool.function

    def wait(**arguments: Any) -> Any:  # noqa: ANN401
        time.sleep(call_seconds(notes(), {"tool": tool.name, **arguments}))
        return function(**arguments)

    slow.function = wait
    return slow


# Several sessions at once.


@dataclasses.dataclass
class TurnCount:
    """A counter of micro-turns, to be called after each of them."""

    on_turn: Callable[[], object] | None  # called after each micro-turn too
    turns: int = 0

    def __call__(self) -> None:
        """Counts one micro-turn."""
        self.turns += 1
        if self.on_turn is not None:
            self.on_turn()


def run_sessions(
    model: BatchModel,
    make_agent: MakeAgent,
    sessions: Sequence[tuple[np.ndarray, str]],
    seed: int,
    folder: pathlib.Path,
    at_once: int = 4,
    tail_s: float = TAIL_S,
    on_turn: Callable[[], object] | None = None,
) -> list[pathlib.Path]:
    """Plays users to a model in real time, some at once, and records the conversations.

    Args:
      model: The model of all conversations.
      make_agent: Makes the agent of a session from the toolbox that it may use.
      sessions: (user, meta) of each session: PCM, int16[n] or float32[n] at 16 kHz, and the meta as
        JSON, from `make_delegation_session` or joined by `join_users` and `join_metas`.
      seed: Session i samples with a seed that is made of this one and i.
      folder: Folder for the records; it must not have any yet.
      at_once: Conversations that run at the same time.
      tail_s: See `talk`.
      on_turn: Called after each micro-turn, on several threads.

    Returns:
      Paths of the records. Each NAME.session has a file NAME.json with its meta and its timing.

    Raises:
      ValueError: The folder has records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.session")):
        raise ValueError(
            f"records: got {folder}, which has records, wanted a folder without any; remove it or "
            "name another one"
        )
    seeds = [
        int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) % 2**31
        for index in range(len(sessions))
    ]
    Conversation(model, seed=seeds[0]).close()  # compiles once, before the threads start

    def one(index: int) -> pathlib.Path:
        if index < at_once:  # so that the steps do not all come at the same time
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
    """Reads a record of `run_sessions`, to be scored.

    Args:
      path: Path of the record.
      decode: Token ids to text.

    Raises:
      ValueError: The record or its JSON file cannot be read.
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
    """The time that the tools took for the final request of each delegation.

    Args:
      delegations: The delegations of a conversation.
      calls: (text, time in s) of all calls, in order. Calls with the same text are matched in this
        order.

    Returns:
      Time in s by the number of the delegation.
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


def run_figures(paths: Sequence[pathlib.Path], model: BatchModel, replays: int) -> dict[str, Any]:
    """Figures of the timing and the records of a run.

    Args:
      paths: Records of `run_sessions`.
      model: The model that made them.
      replays: Most records that are replayed.

    Returns:
      A dict for JSON: "deadline_misses" of 200 ms; "deadline_misses_background", those that are due
      to the work of the conversation beside the model's step; "turns"; "step_p50_ms" and
      "step_p99_ms" of the model's steps, and the same with "_while_waiting" of the micro-turns in
      which a delegation runs; "driver_p99_ms" and "driver_max_ms" of the work beside the steps;
      "records_incomplete"; "replays_bit_equal" as "n of m", and "replay_differences".
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
