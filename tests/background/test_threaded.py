"""A thread that fails, hangs or falls behind fails delegations, and nothing else."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from interaction.background.agent import CALL, DONE, FAILED, TEXT, Event, MicroTurn
from interaction.background.threaded import ThreadedAgent
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox


def turn(index: int) -> MicroTurn:
    silence = np.zeros(3_200, np.float32)
    return MicroTurn(silence, silence, np.array([3, 3], np.int32), index)


class Recorder(ThreadedAgent):
    """Logs the calls of its methods; a request is a command."""

    def __init__(self, keep: int = 300) -> None:
        super().__init__(keep)
        self.log: list[tuple] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def on_turns(self, turns: list[MicroTurn]) -> None:
        self.gate.wait(5)
        if any(one.text < 0 for one in turns):
            raise RuntimeError("a bad turn")
        self.log.append(("turns", [one.text for one in turns]))

    def on_ask(self, delegation: int, request: str) -> None:
        self.log.append(("ask", delegation, request))
        if request == "raise":
            raise RuntimeError("no")
        if request == "die":
            raise SystemExit
        if request == "answer":
            self.emit(delegation, TEXT, "it is one")
            self.emit(delegation, DONE)

    def on_update(self, delegation: int, request: str, updates: list[str]) -> None:
        self.log.append(("update", delegation, request, *updates))

    def on_cancel(self, delegation: int) -> None:
        self.log.append(("cancel", delegation))

    def work(self) -> bool:
        return False

    def reset(self) -> None:
        if self.broken:
            raise RuntimeError("cannot start")
        self.log.append(("reset",))


def collect(agent: ThreadedAgent, number: int, limit_s: float = 5.0) -> list[Event]:
    events, end = [], time.monotonic() + limit_s
    while len(events) < number and time.monotonic() < end:
        events += agent.events()
        time.sleep(0.005)
    return events


def wait_for(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.002)


def test_a_subclass_that_lacks_a_method_is_refused() -> None:
    class Incomplete(Recorder):
        work = ThreadedAgent.work

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()


def test_order_is_kept_and_turns_come_together() -> None:
    agent = Recorder()
    agent.gate.clear()
    for index in range(5):
        agent.observe(turn(index))
    agent.ask(1, "wait")
    agent.observe(turn(5))
    agent.update(1, "wait", ["nine"])
    agent.cancel(1)
    agent.ask(2, "answer")
    agent.gate.set()
    assert collect(agent, 2) == [Event(2, TEXT, "it is one"), Event(2, DONE)]
    told = [text for one in agent.log if one[0] == "turns" for text in one[1]]
    assert told == list(range(6))
    rest = [one for one in agent.log if one[0] != "turns"]
    update = ("update", 1, "wait", "nine")
    assert rest == [("ask", 1, "wait"), update, ("cancel", 1), ("ask", 2, "answer")]
    assert len(agent.log) < 11  # several turns at once
    agent.close()


@pytest.mark.parametrize("how", ["raise", "die"])
def test_the_agent_restarts_after_a_failure(how: str) -> None:
    agent = Recorder(keep=3)
    for index in range(5):
        agent.observe(turn(index))
        wait_for(lambda index=index: ("turns", [index]) in agent.log)
    agent.ask(1, "wait")
    agent.ask(2, how)
    agent.observe(turn(5))
    agent.ask(3, "answer")
    events = collect(agent, 4)
    assert [(one.delegation, one.kind) for one in events] == [
        (1, FAILED),
        (2, FAILED),
        (3, TEXT),
        (3, DONE),
    ]
    after = agent.log[agent.log.index(("reset",)) :]
    assert after == [("reset",), ("turns", [2, 3, 4]), ("turns", [5]), ("ask", 3, "answer")]
    agent.close()


def test_a_record_that_fails_again_after_a_restart_is_forgotten() -> None:
    agent = Recorder()
    agent.observe(turn(1))
    agent.observe(turn(-1))
    agent.ask(1, "answer")
    assert [one.kind for one in collect(agent, 2)] == [TEXT, DONE]
    assert ("turns", [1]) not in agent.log[agent.log.index(("reset",)) :]
    agent.close()


def test_an_agent_that_cannot_restart_fails_delegations_until_it_can() -> None:
    agent = Recorder()
    agent.broken = True
    for number in (1, 2, 3):
        agent.ask(number, "raise")
    assert [(one.delegation, one.kind) for one in collect(agent, 3)] == [
        (1, FAILED),
        (2, FAILED),
        (3, FAILED),
    ]
    agent.broken = False
    agent.ask(4, "answer")
    assert [one.kind for one in collect(agent, 2)] == [TEXT, DONE]
    agent.close()


def test_a_hanging_thread_has_bounded_memory_and_does_not_delay_the_caller() -> None:
    agent = Recorder(keep=10)
    agent.gate.clear()
    agent.ask(1, "wait")
    slowest = 0.0
    for index in range(1_000):
        start = time.monotonic()
        agent.observe(turn(index))
        slowest = max(slowest, time.monotonic() - start)
        assert len(agent._ThreadedAgent__inbox) <= 11 and len(agent._ThreadedAgent__skipped) <= 10
    assert slowest < 0.1
    agent.gate.set()
    assert [one.kind for one in collect(agent, 1)] == [FAILED]
    agent.ask(2, "answer")
    assert [one.kind for one in collect(agent, 2)] == [TEXT, DONE]
    told = [text for one in agent.log if one[0] == "turns" for text in one[1]]
    assert told[-1] == 999
    agent.close()


def test_an_update_drops_the_answer_before_it() -> None:
    agent = Recorder()
    agent.ask(1, "answer")
    wait_for(lambda: len(agent._ThreadedAgent__outbox) == 2)
    agent.gate.clear()
    agent.observe(turn(0))
    agent.update(1, "answer", ["nine"])  # the answer was not taken yet
    assert agent.events() == []
    agent.gate.set()
    wait_for(lambda: ("update", 1, "answer", "nine") in agent.log and agent.running == (1,))
    agent.close()


class Caller(Recorder):
    def __init__(self, toolbox: Toolbox) -> None:
        super().__init__()
        self.toolbox = toolbox
        self.raised = threading.Event()

    def on_ask(self, delegation: int, request: str) -> None:
        self.gate.wait(5)
        try:
            self.call(delegation, self.toolbox, request)
        except RuntimeError:
            self.raised.set()
            raise


def test_no_call_is_made_after_closing() -> None:
    runs = []

    @tool
    def note() -> None:
        """Counts its runs."""
        runs.append(1)

    agent = Caller(Toolbox([note]))
    agent.ask(1, '{"tool": "note"}')
    wait_for(lambda: len(runs) == 1)
    assert agent.events() == [Event(1, CALL, '{"tool": "note"}')]
    agent.gate.clear()
    agent.ask(2, '{"tool": "note"}')
    wait_for(lambda: 2 in agent.running)
    agent.close()
    agent.gate.set()
    assert agent.raised.wait(5)
    assert agent.events() == [] and len(runs) == 1


class Flood(Recorder):
    def work(self) -> bool:
        for number in self.running:
            self.emit(number, TEXT, "words " * 10_000)
        return True


def test_an_agent_with_too_many_events_waits_until_they_are_taken() -> None:
    agent = Flood()
    agent.ask(1, "wait")
    time.sleep(0.2)
    events = agent.events()
    assert 1 <= len(events) <= 1_000
    assert max(len(one.text) for one in events) <= 20_000
    agent.close()
    assert not agent._ThreadedAgent__thread.is_alive()


def test_a_corrected_call_knows_when_it_was_first_asked_for() -> None:
    """Also after other delegations, and after the first call has ended."""
    starts: list[float] = []

    @tool
    def note(started: float) -> int:
        """Notes its start."""
        starts.append(started)
        return 1

    class Caller(Recorder):
        def on_ask(self, delegation: int, request: str) -> None:
            self.call(delegation, Toolbox([note]), '{"tool": "note"}')
            if request == "answer":
                self.emit(delegation, DONE)

        def on_update(self, delegation: int, request: str, updates: list[str]) -> None:
            self.on_ask(delegation, request)

    agent, before = Caller(), time.monotonic()
    agent.ask(1, "one")
    agent.ask(2, "answer")
    after = time.monotonic()
    wait_for(lambda: len(starts) == 2)
    starts.sort()
    for number in range(3, 200):
        agent.ask(number, "answer")
    wait_for(lambda: len(starts) == 199)
    agent.update(1, "one", ["nine"])
    wait_for(lambda: len(starts) == 200)
    agent.update(199, "answer", ["nine"])
    wait_for(lambda: len(starts) == 201)
    agent.update(2, "answer", ["nine"])  # long ended and forgotten
    wait_for(lambda: len(starts) == 202)
    agent.close()
    assert before <= starts[0] <= starts[1] <= after
    newest = max(starts[:199])
    assert starts[199:201] == [starts[0], newest] and starts[201] > newest
