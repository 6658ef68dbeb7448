"""A live model whose text is a script, and an agent that calls tools."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from interaction import presets
from interaction.background.agent import DONE, RESULT, TEXT
from interaction.background.threaded import ThreadedAgent
from interaction.background.toolbox import Toolbox, ToolCall
from interaction.data.tokenizer import load_tokenizer
from interaction.engine import session_file
from interaction.pretrained import fingerprints
from interaction.types import Chunk, Reply, Special

TOKENIZER = load_tokenizer()
SILENCE = np.zeros(3_200, np.float32)


def words(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def delegate(text: str, opening: int = Special.DELEGATE) -> list[int]:
    return [opening, *words(text), Special.END_DELEGATE]


def wait_for(condition: Callable[[], Any], limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.002)


class FakeModel:
    """Its text-out tokens are a script; it records the text that arrived."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        self.config = presets.tiny()
        self.params = {"weight": jnp.arange(4.0)}
        self.tokenizer = TOKENIZER
        self.script = list(script)
        self.arrived: list[tuple[int, list[int]]] = []  # micro-turn, tokens
        self.steps = 0

    def init_state(self, sessions: int, seed: int = 0) -> dict:
        assert sessions == 1
        return self.init_row(seed)

    def init_row(self, seed: int) -> dict:
        return {"clock": jnp.zeros(1, jnp.uint32), "seed": jnp.full(1, seed)}

    def fingerprint(self) -> str:
        return fingerprints.fingerprint(self.config, self.params)

    def pack_row(self, one: dict) -> dict:
        return session_file.pack_state(one)

    def unpack_row(self, packed: dict, where: object) -> dict:
        return session_file.unpack_state(packed, self.init_row(0), where)

    def compile(self, sessions: int, *, frames: bool) -> None:
        self.compiled = (sessions, frames)

    def take_row(self, state: dict, row: int) -> dict:
        return dict(state)

    def put_row(self, state: dict, row: int, one: dict) -> dict:
        return dict(one)

    def step(self, state: dict, chunk: Chunk) -> tuple[dict, Reply]:
        state = self.init_row(int(chunk.seed[0])) if chunk.reset[0] else state
        turn = int(state["clock"][0])
        self.steps += 1
        if chunk.text is not None:
            tokens = [int(one) for one in chunk.text[0] if one != Special.PAD]
            self.arrived.append((turn, tokens))
        token = self.script[turn] if turn < len(self.script) else Special.SILENT
        reply = Reply(
            audio=chunk.audio * np.float32(0.5),
            text=np.array([token], np.int32),
            user_transcript=np.full((1, self.config.audio_positions), Special.NONE, np.int32),
            refused=np.zeros(1, bool),
        )
        return {**state, "clock": state["clock"] + 1}, reply

    @property
    def given(self) -> str:
        """The text that arrived, as words and names of control tokens."""
        parts, ids = [], []
        for one in [token for _, tokens in self.arrived for token in tokens]:
            if one < Special.COUNT:
                parts += [TOKENIZER.decode(ids)] * bool(ids) + [Special.NAMES[one]]
                ids = []
            else:
                ids.append(one)
        return " ".join([*parts, *[TOKENIZER.decode(ids)] * bool(ids)])


class ToolAgent(ThreadedAgent):
    """Calls the tool that a request names, and says its result."""

    def __init__(self, toolbox: Toolbox, keep: int = 300) -> None:
        super().__init__(keep)
        self.toolbox = toolbox
        self.calls: dict[int, ToolCall] = {}
        self.asked: list[tuple[int, str]] = []
        self.observed = 0

    def on_turns(self, turns: list) -> None:
        self.observed += len(turns)

    def on_ask(self, delegation: int, request: str) -> None:
        self.asked.append((delegation, request))
        self.calls[delegation] = self.call(
            delegation, self.toolbox, f'{{"tool": "{request.replace(" ", "_")}"}}'
        )

    def on_update(self, delegation: int, request: str, updates: list[str]) -> None:
        self.on_ask(delegation, updates[-1])

    def on_cancel(self, delegation: int) -> None:
        self.calls.pop(delegation).cancel()

    def work(self) -> bool:
        for number, call in list(self.calls.items()):
            if call.done():
                del self.calls[number]
                self.emit(number, RESULT, call.result())
                self.emit(number, TEXT, "it is one")
                self.emit(number, DONE)
        return False

    def reset(self) -> None:
        self.calls.clear()
