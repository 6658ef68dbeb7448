"""A leader without other processes; `tests/multihost` has some."""

import concurrent.futures
import gc
import queue
import socket
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import jax
import numpy as np
import pytest

from interaction.distributed import sharding
from interaction.engine import process_links
from interaction.engine.engine import Engine
from interaction.engine.follower import follow
from interaction.engine.leader import HostLostError, Leader
from interaction.types import Chunk, Reply
from tests.background.fakes import SILENCE, FakeModel, wait_for


class Own(FakeModel):
    """A model with a mesh of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = sharding.make_mesh({})
        self.hangs_s = 0.0

    def own_rows(self, sessions: int) -> np.ndarray:
        if sessions != 1:
            raise ValueError(f"sessions: got {sessions}")
        return np.arange(sessions)

    def step(self, state: dict, chunk: Chunk) -> tuple[dict, Reply]:
        time.sleep(self.hangs_s)
        return super().step(state, chunk)


def test_a_mistake_of_all_processes_is_raised_and_changes_nothing() -> None:
    with Leader(Own()) as leader:
        with pytest.raises(ValueError, match="sessions: got 2"):
            Engine(leader, 2)
        engine = Engine(leader)
        session = engine.open(seed=3)
        session.give(SILENCE)
        engine.tick()
        assert session.reply is not None


def test_a_process_that_does_not_answer_is_lost_and_the_sessions_end() -> None:
    model, told = Own(), []
    with Leader(model, lost_after_s=0.2) as leader:
        engine = Engine(leader)
        session = engine.open(seed=3)
        session.subscribe(lambda event: told.append(event.text))
        with pytest.raises(RuntimeError, match="did not answer"), engine:
            wait_for(lambda: session.stats.turns > 1)
            model.hangs_s = 2.0
            wait_for(lambda: session.closed)
        assert "processes [0] did not answer within 0.2 s" in session.closed
        assert session.closed in told
        with pytest.raises(HostLostError, match="start all processes again"):
            leader.init_row(1)


def test_values_that_are_not_used_any_more_are_dropped() -> None:
    with Leader(Own()) as leader:
        engine = Engine(leader)
        session = engine.open(seed=3)
        for _ in range(20):
            session.give(SILENCE)
            engine.tick()
            engine.snapshot(session)
        gc.collect()
        assert len(leader._own.held) <= 3


def test_strangers_at_the_port_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """One says nothing, one speaks HTTP, one has another secret; then process 1 comes."""
    told: queue.Queue[tuple[str, int, bytes]] = queue.Queue()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(process_links, "_share", told.put)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        joined = pool.submit(process_links.accept_all, "localhost")
        address, port, secret = told.get(timeout=5)
        silent = socket.create_connection((address, port))
        web = socket.create_connection((address, port))
        web.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(AuthenticationError):
            Client((address, port), authkey=b"another")
        one = Client((address, port), authkey=secret)
        one.send_bytes(process_links.encode({"process": 1}))
        [there] = joined.result(timeout=10)
    there.send_bytes(b"hello")
    assert one.recv_bytes() == b"hello"
    for connection in (silent, web, one, there):
        connection.close()


def test_the_first_process_leads() -> None:
    with pytest.raises(ValueError, match="got follow, wanted Leader in process 0"):
        follow(Own())
