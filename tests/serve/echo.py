"""A model of several sessions that repeats its user at half the level, and a server of it."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from interaction.serve.app import About
from interaction.serve.house import House
from interaction.serve.server import Server
from interaction.types import Chunk, Reply, Special
from tests.background.fakes import FakeModel, wait_for


class EchoModel(FakeModel):
    """Each session says the script; the user's words come from another script."""

    def __init__(self, script: Sequence[int] = (), heard: Sequence[int] = ()) -> None:
        super().__init__(script)
        self.config = dataclasses.replace(self.config, trained_on_text=False)  # as the demo
        self.heard = list(heard)
        self.seen: list[np.ndarray] = []  # frames

    def init_state(self, sessions: int, seed: int = 0) -> dict:
        return {"clock": jnp.zeros(sessions, jnp.uint32), "seed": jnp.zeros(sessions, jnp.int32)}

    def take_row(self, state: dict, row: int) -> dict:
        return {name: leaf[row : row + 1] for name, leaf in state.items()}

    def put_row(self, state: dict, row: int, one: dict) -> dict:
        return {name: leaf.at[row].set(one[name][0]) for name, leaf in state.items()}

    def step(self, state: dict, chunk: Chunk) -> tuple[dict, Reply]:
        clock = np.where(chunk.reset, 0, np.asarray(state["clock"]))
        seed = np.where(chunk.reset, chunk.seed, np.asarray(state["seed"]))
        if chunk.frame is not None:
            self.seen += [chunk.frame[row] for row in np.flatnonzero(chunk.has_frame)]
        for row in np.flatnonzero(chunk.active):
            if chunk.text is not None and np.any(chunk.text[row]):
                tokens = [int(one) for one in chunk.text[row] if one != Special.PAD]
                self.arrived.append((int(clock[row]), tokens))

        def said(script: list[int], otherwise: int) -> np.ndarray:
            known = [script[t] if t < len(script) else otherwise for t in clock]
            return np.array(known, np.int32)

        heard = np.full((len(clock), self.config.audio_positions), Special.NONE, np.int32)
        heard[:, 0] = said(self.heard, Special.NONE)
        audio = chunk.audio * np.float32(0.5)
        reply = Reply(audio, said(self.script, Special.SILENT), heard, np.zeros(len(clock), bool))
        clock = (clock + chunk.active).astype(np.uint32)
        return {"clock": jnp.asarray(clock), "seed": jnp.asarray(seed, jnp.int32)}, reply


@contextlib.contextmanager
def serving(house: House, about: About | None = None) -> Iterator[str]:
    """Runs a server in a thread; yields its host and port."""
    server = Server(house, about)
    house.server = server  # so that a test can end it
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive(), 20)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
