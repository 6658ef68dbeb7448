"""Subscribers, files, devices and agents that go wrong around an engine's sessions."""

import pathlib
import time

import pytest

from interaction.background.scripted import ScriptedAgent
from interaction.engine import session_events
from interaction.engine.engine import Engine
from interaction.engine.rows import FullError
from tests.background.fakes import FakeModel, wait_for
from tests.engine.test_engine import ROWS, Broken, engine, model, take

__all__ = ["engine", "model"]  # fixtures


def test_a_subscriber_may_close_and_open_sessions(engine: Engine) -> None:
    sessions = [engine.open(seed=seed) for seed in range(ROWS)]
    opened = []

    def replace(event: session_events.SessionEvent) -> None:
        if not opened:
            engine.close(sessions[1])
            opened.append(engine.open(seed=9))

    sessions[0].subscribe(replace)
    for turn in range(6):
        take(engine, *((one, 0, turn) for one in engine.sessions))
    assert opened and set(engine.sessions) == {sessions[0], sessions[2], opened[0]}
    heard = opened[0].stats.turns
    assert sessions[0].stats.turns == 6 and 1 <= heard < 6 and sessions[1].stats.turns < 6


def test_a_subscriber_that_exits_is_dropped_alone() -> None:
    with Engine(FakeModel()) as engine:
        session = engine.open()
        session.subscribe(lambda event: exit(3))
        session.tell(session_events.SessionEvent(0, session_events.MICROPHONE))
        turns = session.stats.turns
        wait_for(lambda: session.stats.turns > turns + 1)
        assert not session.closed


def test_a_session_whose_file_cannot_be_written_can_be_written_elsewhere(
    engine: Engine, tmp_path: pathlib.Path
) -> None:
    session = engine.open(seed=5)
    take(engine, (session, 0, 0))
    with pytest.raises(FileNotFoundError):
        engine.close(session, path=tmp_path / "missing" / "a")
    assert session.closed and engine.free == ROWS
    engine.close(session, path=tmp_path / "a")
    assert engine.restore(tmp_path / "a").stats.turns == 1
    ended = engine.open()
    engine.close(ended)
    with pytest.raises(ValueError, match="wanted an open one"):
        engine.close(ended, path=tmp_path / "b")


def test_a_failed_step_ends_an_engine_that_is_driven_by_hand() -> None:
    engine = Engine(Broken())
    session = engine.open()
    for _ in range(3):
        engine.tick()
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.tick()
    assert session.closed == "the engine failed: RuntimeError('out of memory')"
    with pytest.raises(RuntimeError, match="make another one"):
        engine.tick()


def test_micro_turns_that_never_happened_are_missed() -> None:
    now = [100.0]

    class Stalls(FakeModel):
        def step(self, state: dict, chunk: object) -> tuple:
            now[0] += 6.0 if self.steps == 3 else 0.01
            return super().step(state, chunk)

    def sleep(seconds: float) -> None:
        now[0] += seconds
        time.sleep(0.001)

    with Engine(Stalls(), clock=lambda: now[0], sleep=sleep) as engine:
        session = engine.open()
        wait_for(lambda: session.stats.turns > 6)
        missed = engine.missed
    assert 28 <= missed <= 30  # of 6 s


def test_an_agent_whose_session_cannot_begin_is_free_again(engine: Engine) -> None:
    agent = ScriptedAgent({})
    sessions = [engine.open(seed=seed) for seed in range(ROWS)]
    with pytest.raises(FullError):
        engine.open(agent)
    engine.close(sessions[0])
    engine.open(agent)
