"""A background model that writes a script, and its agent."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.background.agent import Event, MicroTurn
from interaction.background.reasoner_agent import READ, Reasoner, ReasonerAgent
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.background.trained import Trained
from interaction.config import PREFILL_TURNS
from interaction.types import Special
from tests.background.fakes import TOKENIZER, wait_for, words
from tests.support import SMALLEST

CONFIG = SMALLEST
SEVEN = json.dumps({"tool": "times", "a": 7, "b": 8})
NINE = json.dumps({"tool": "times", "a": 7, "b": 9})
CALLS = (json.loads(SEVEN), {"tool": "wait"}, {"tool": "hold", "name": "one"})
ANSWERS = {  # for each result
    56: ("it is fifty six",),
    63: ("it is sixty three", "sixty three"),
    "one": ("one",),
    "two": ("two",),
    "zyxwv": ("it is fifty zyxwv six",),
}


def answers(call: dict[str, Any], result: object) -> tuple[str, ...]:
    assert call["tool"] in ("times", "wait", "hold")
    return ANSWERS.get(result, ()) if isinstance(result, int | str) else ()


def turn(text: int = Special.SILENT, frame: np.ndarray | None = None) -> MicroTurn:
    """A silent micro-turn, with a frame float32[size, size, 3] or none."""
    silence = np.zeros(CONFIG.audio.turn_samples, np.float32)
    heard = np.full(CONFIG.audio_positions, Special.NONE, np.int32)
    return MicroTurn(silence, silence, heard, text, None, frame)


def call(text: str = SEVEN) -> list[int]:
    return [Special.DELEGATE, *words(text), Special.END_DELEGATE]


def answer(text: str) -> list[int]:
    return [Special.HOLD, *words(text), Special.SILENT]


class State(NamedTuple):
    turns: tuple[MicroTurn, ...]
    tokens: tuple[int, ...] = ()  # tokens that were read, including those that it wrote itself


def corrections(request: str, said: Sequence[str]) -> Sequence[str] | None:
    """A "ten" is none; "and nine" is known as "nine"."""
    return None if "ten" in said else [words.removeprefix("and ") for words in said]


Script = dict[str, list[list[int]]]  # words of a request -> what it writes after each span


class FakeReasoner(Reasoner):
    """Writes what a script says, one list of tokens after each span that it reads."""

    def __init__(self, script: Script) -> None:
        self.tokenizer = TOKENIZER
        self.trained = Trained(CALLS, answers, corrections)
        self.script = script
        self.sizes: list[int] = []  # numbers of micro-turns of each prefill
        self.gone: set[int] = set()  # identities of donated states
        self.states: list[State] = []

    def _new(self, state: State) -> State:
        self.states.append(state)  # keeps it, and its identity
        return state

    def _donate(self, state: State) -> None:
        assert id(state) not in self.gone, "a state is used after it was donated"
        self.gone.add(id(state))

    def warm_up(self, frames: bool = False) -> None:
        pass

    def start(self) -> State:
        return self._new(State(()))

    def prefill(self, state: State, turns: Sequence[MicroTurn]) -> State:
        assert 0 < len(turns) <= PREFILL_TURNS
        self._donate(state)
        self.sizes.append(len(turns))
        return self._new(State((*state.turns, *turns)))

    def fork(self, state: State) -> State:
        assert id(state) not in self.gone
        return self._new(State(*state))

    def read(self, state: State, ids: Sequence[int]) -> tuple[State, int]:
        assert 0 < len(ids) <= READ
        self._donate(state)
        tokens = (*state.tokens, *ids)
        state = self._new(State(state.turns, tokens))
        spans = [0, *(i for i, one in enumerate(tokens) if i and one == Special.UPDATE)]
        if Special.END_DELEGATE not in tokens[spans[-1] :]:
            return state, Special.PAD  # in the middle of a span that it reads
        ends = [tokens.index(Special.END_DELEGATE, first) for first in spans]
        said = [TOKENIZER.decode(tokens[a + 1 : b]) for a, b in zip(spans, ends, strict=True)]
        while said[1:] and not said[1].startswith("{"):  # a correction, not a result
            said = said[1:]
        writes = self.script[said[0]][len(said) - 1]
        return state, writes[len(tokens) - ends[-1] - 1]


@tool
def times(a: int, b: int) -> int:
    """Multiplies.

    Args:
      a: One.
      b: Another.
    """
    return a * b


class Talk:
    """An agent and its events."""

    def __init__(self, script: Script, *tools: object) -> None:
        self.model = FakeReasoner(script)
        self.agent = ReasonerAgent(self.model, Toolbox(tools or (times,)))
        self.got: list[Event] = []

    def events(self, until: str, count: int = 1) -> list[tuple[str, str]]:
        """Kinds and texts of the events up to the `count`-th of a kind."""

        def come() -> bool:
            self.got += self.agent.events()
            return sum(one.kind == until for one in self.got) >= count

        wait_for(come)
        return [(one.kind, one.text) for one in self.got]


def start(agents: list, script: Script, *tools: object) -> Talk:
    agents.append(Talk(script, *tools))
    return agents[-1]


SCRIPT = {
    "seven times eight": [[*words("seven times eight"), *call()], answer("it is fifty six")],
    "nine": [[*words("seven times nine"), *call(NINE)], answer("it is sixty three")],
}
