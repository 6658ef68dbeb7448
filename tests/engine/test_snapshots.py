"""Sessions whose process may be killed: there is a readable file of each at any moment."""

import pathlib
import time

import numpy as np
import pytest

from interaction.engine.engine import Engine
from interaction.engine.snapshots import SUFFIX, Snapshots
from tests.background.fakes import FakeModel, wait_for


def test_open_sessions_have_a_file_that_goes_on_and_closed_ones_have_none(
    tmp_path: pathlib.Path,
) -> None:
    engine = Engine(FakeModel())
    session = engine.open(seed=7)
    path = tmp_path / "a" / f"{session.name}{SUFFIX}"
    with engine, Snapshots(engine, tmp_path / "a", every_s=0.05):
        wait_for(path.is_file)
        turns = session.stats.turns
        wait_for(lambda: session.stats.turns > turns + 1)
        time.sleep(0.2)
        taken = session.stats.turns
        wait_for(path.is_file)
        other = Engine(FakeModel())
        there = other.restore(path)
        assert 0 <= taken - there.stats.turns <= 2 and there.seed == 7
        np.testing.assert_array_equal(other.snapshot(there)[1]["seed"], [7])
        engine.close(session)
        wait_for(lambda: not path.exists())


def test_a_full_disk_ends_nothing(tmp_path: pathlib.Path) -> None:
    engine = Engine(FakeModel())
    session = engine.open()
    (tmp_path / f"{session.name}{SUFFIX}").mkdir()  # so that the file cannot be written
    with engine, Snapshots(engine, tmp_path, every_s=0.05):
        wait_for(lambda: session.stats.turns > 3)
        assert not session.closed


def test_sessions_of_an_engine_that_is_driven_by_hand_are_saved_between_two_steps(
    tmp_path: pathlib.Path,
) -> None:
    class Slow(FakeModel):
        """In the middle of a step its state is gone, as a donated one is."""

        def step(self, state: dict, chunk: object) -> tuple:
            kept = dict(state)
            state.clear()
            time.sleep(0.02)
            return super().step(kept, chunk)

    engine = Engine(Slow())
    session = engine.open(seed=7)
    engine.tick()
    with Snapshots(engine, tmp_path, every_s=0.01):
        for _ in range(30):
            engine.tick()
    other = Engine(FakeModel())
    there = other.restore(tmp_path / f"{session.name}{SUFFIX}")
    assert there.stats.turns == int(other.snapshot(there)[1]["clock"][0]) > 1


def test_the_files_of_a_failed_engine_stay(tmp_path: pathlib.Path) -> None:
    class Broken(FakeModel):
        """Its device fails once there is a file."""

        def step(self, state: dict, chunk: object) -> tuple:
            if list(tmp_path.glob(f"*{SUFFIX}")):
                raise RuntimeError("out of memory")
            return super().step(state, chunk)

    engine = Engine(Broken())
    session = engine.open(seed=7)
    snapshots = Snapshots(engine, tmp_path, every_s=0.01)
    with pytest.raises(RuntimeError, match="out of memory"), engine:
        wait_for(lambda: session.closed)
        wait_for(lambda: not snapshots._thread.is_alive())
    other = Engine(FakeModel())
    again = other.restore(tmp_path / f"{session.name}{SUFFIX}")
    assert (again.seed, again.name) == (7, session.name)
    with Snapshots(other, tmp_path, every_s=0.01):
        wait_for(lambda: other.tick() or again.stats.turns > 5)
        other.close(again)
        wait_for(lambda: not list(tmp_path.glob(f"*{SUFFIX}")))
