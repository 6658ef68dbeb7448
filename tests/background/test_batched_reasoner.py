"""The batched reasoner: conversations as if alone, rows, failures, and calls that are shared."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from interaction.background.agent import DONE, FAILED, THINKING, MicroTurn
from interaction.background.batched_reasoner import BatchedReasoner, Row
from interaction.background.demo_tools import demo_tools
from interaction.background.reasoner_agent import (
    NoFreeRowError,
    Reasoner,
    ReasonerAgent,
    pack_tokens,
    pack_turns,
)
from interaction.background.reasoner_rows import RowFunctions, make_row_functions, take_rows
from interaction.background.toolbox import Toolbox
from interaction.config import PREFILL_TURNS
from interaction.types import Special
from tests.background.fake_reasoner import CONFIG, turn
from tests.background.fakes import TOKENIZER, wait_for
from tests.support import random_params

ROWS = 8
SIZES = [1, 4]  # rows of a call: fewer programs to compile
TURNS = 47  # of a conversation, less its seed: more positions than the rings hold
LENGTH = 6  # tokens that a fork writes


@pytest.fixture(scope="module")
def alone() -> Reasoner:
    return Reasoner(CONFIG, random_params(CONFIG), TOKENIZER)


@pytest.fixture(scope="module")
def functions(alone: Reasoner) -> RowFunctions:
    """Compiled once for all tests."""
    return make_row_functions(*alone._parts)


@pytest.fixture
def model(alone: Reasoner, functions: RowFunctions) -> Iterator[BatchedReasoner]:
    made = BatchedReasoner(alone, ROWS)
    made._functions, made._sizes = functions, SIZES
    yield made
    made.close()


def turns(seed: int, count: int) -> list[MicroTurn]:
    """Random micro-turns of the conversation of a seed."""
    rng = np.random.default_rng(seed)
    return [
        turn(int(rng.integers(Special.COUNT, CONFIG.vocab)))._replace(
            audio=rng.uniform(-0.3, 0.3, CONFIG.audio.turn_samples).astype(np.float32)
        )
        for _ in range(count)
    ]


def talk(model: Reasoner, seed: int) -> tuple[list[int], object]:
    """The micro-turns of a conversation, then a fork: its request and the tokens that it writes.

    Returns the tokens and the state of the record.
    """
    record, heard = model.start(), turns(seed, TURNS - seed)
    for first in range(0, len(heard), PREFILL_TURNS):
        record = model.prefill(record, heard[first : first + PREFILL_TURNS])
    fork = model.fork(record)
    fork, token = model.read(
        fork, [Special.DELEGATE, *range(20, 24 + seed % 4), Special.END_DELEGATE]
    )
    wrote = []
    for _ in range(LENGTH):
        wrote.append(token)
        fork, token = model.read(fork, [token])
    return wrote, record


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """Results of calls on threads, or their exceptions."""
    found: list[object] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            found[place] = calls[place]()
        except RuntimeError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    return found


def leaves(row: Row) -> list[np.ndarray]:
    """The arrays of a row."""
    one = take_rows(row.rows.state, np.array([row.number]))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(one)]


class Counted:
    """One of the functions, which counts its calls and may wait or fail."""

    def __init__(self, model: BatchedReasoner, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        self.sizes: list[int] = []
        self.fails = ""  # "before" or "after" the state is donated
        self.gate = threading.Event()
        self.gate.set()
        self._function = getattr(model._functions, kind)
        changed = model._functions._replace(**{kind: self})
        monkeypatch.setattr(model, "_functions", changed)

    def __call__(self, params: object, state: object, given: tuple) -> tuple:
        self.sizes.append(int(np.sum(given[0] < ROWS)))
        self.gate.wait(10)
        fails, self.fails = self.fails, ""
        if fails == "before":
            raise MemoryError("no memory")
        out = self._function(params, state, given)
        if fails == "after":
            raise MemoryError("no memory")
        return out


@pytest.mark.optimised
@pytest.mark.parametrize("kind", ["prefill", "read"])
def test_a_row_does_not_depend_on_the_rows_that_share_its_call(
    kind: str, model: BatchedReasoner
) -> None:
    """Bits of a row in a padded call of four, and at another place beside three others.

    Padding leaves all other rows as they were.
    """
    given = {
        "prefill": [pack_turns(CONFIG, turns(seed, 5)) for seed in range(4)],
        "read": [pack_tokens([30 + seed] * (3 + seed)) for seed in range(4)],
    }[kind]
    for number in range(4):
        found = []
        for order in ([number], [(number + place) % 4 for place in (1, 2, 0, 3)]):
            state = model._functions.init(ROWS)
            for row in range(4):  # a past, of which each row has another one
                past = pack_turns(CONFIG, turns(10 + row, 5))
                state, _ = model._batch("prefill", state, [row], [past])
            others = np.array([row for row in range(ROWS) if row not in order])
            before = take_rows(state, others)
            inputs = [given[row] for row in order]
            state, results = model._batch(
                kind, state, order, inputs + inputs[:1] * (4 - len(order))
            )
            jax.tree.map(np.testing.assert_array_equal, take_rows(state, others), before)
            found.append((results[order.index(number)], take_rows(state, np.array([number]))))
        jax.tree.map(np.testing.assert_array_equal, *found)


def test_interleaved_conversations_write_what_each_writes_alone(
    alone: Reasoner, model: BatchedReasoner
) -> None:
    found = at_once([lambda seed=seed: talk(model, seed) for seed in range(4)])
    for seed, (wrote, record) in enumerate(found):
        wanted, state = talk(alone, seed)
        assert wrote == wanted, seed
        for one, other in zip(leaves(record), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)  # measured: 1.3e-6
    assert len({tuple(wrote) for wrote, _ in found}) > 1, "the conversations are all alike"


def test_rows_are_free_again_and_hold_nothing_of_the_session_before(
    model: BatchedReasoner,
) -> None:
    for seed in range(ROWS + 1):
        talk(model, seed)
    assert model.free == ROWS
    rows = [model.start() for _ in range(ROWS)]
    for row in rows:
        for leaf, new in zip(leaves(row), jax.tree.leaves(model._functions.init(1)), strict=True):
            np.testing.assert_array_equal(leaf, new)


def test_a_full_house_is_refused_and_disturbs_nobody(
    alone: Reasoner, model: BatchedReasoner
) -> None:
    record = model.prefill(model.start(), turns(1, 5))
    others = [model.fork(record) for _ in range(ROWS - 1)]
    for call in (model.start, lambda: model.fork(record)):
        with pytest.raises(NoFreeRowError, match=f"rows: all {ROWS} are taken"):
            call()
    others.pop()
    _, token = model.read(model.fork(record), [Special.DELEGATE, 20, Special.END_DELEGATE])
    state = alone.prefill(alone.start(), turns(1, 5))
    assert token == alone.read(state, [Special.DELEGATE, 20, Special.END_DELEGATE])[1]
    with pytest.raises(ValueError, match="rows: got 0, wanted at least 1"):
        BatchedReasoner(alone, 0)


def test_calls_that_wait_are_one_call(
    model: BatchedReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [model.start() for _ in range(4)]
    counted = Counted(model, monkeypatch, "read")
    counted.gate.clear()
    first = threading.Thread(target=lambda: model.read(rows[0], [20]))
    first.start()
    wait_for(lambda: counted.sizes == [1])
    calls = [lambda row=row: model.read(row, [21]) for row in rows[1:]]
    calls.append(lambda: model.prefill(rows[1], turns(0, 1)))  # another function: its own call

    def open_gate() -> None:
        wait_for(lambda: len(model._waiting) == 4)
        counted.gate.set()

    calls.append(open_gate)
    at_once(calls)
    first.join()
    assert counted.sizes == [1, 3]


def test_threads_that_go_on_share_their_calls(
    model: BatchedReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads read 20 tokens each; in two groups that take turns they would need 40 calls."""
    rows = [model.start() for _ in range(4)]
    for size in (1, 4):  # compiles
        at_once([lambda row=row: model.read(row, [20]) for row in rows[:size]])
    counted = Counted(model, monkeypatch, "read")

    def go(row: Row) -> None:
        for token in range(20, 40):
            model.read(row, [token])

    at_once([lambda row=row: go(row) for row in rows])
    assert sum(counted.sizes) == 20 * 4
    assert len(counted.sizes) < 40, counted.sizes


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_call_that_fails(
    fails: str, alone: Reasoner, model: BatchedReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the state is donated its own row is lost, after that every row."""
    wanted, _ = talk(alone, 2)
    record = model.prefill(model.start(), turns(1, 5))
    other = model.start()
    counted = Counted(model, monkeypatch, "prefill")
    counted.fails = fails
    with pytest.raises(RuntimeError, match="the background model failed: MemoryError: no memory"):
        model.prefill(other, turns(2, 5))
    with pytest.raises(RuntimeError, match="state: its row was lost"):
        model.read(other, [20])
    tokens = [Special.DELEGATE, 20, Special.END_DELEGATE]
    if fails == "before":
        token = model.read(model.fork(record), tokens)[1]
        assert token == alone.read(alone.prefill(alone.start(), turns(1, 5)), tokens)[1]
        assert model.free == ROWS - 1
    else:
        for call in (lambda: model.read(record, [20]), lambda: model.fork(record)):
            with pytest.raises(RuntimeError, match="state: its row was lost"):
                call()
        assert model.free == ROWS
    assert talk(model, 2)[0] == wanted


def test_calls_of_a_closed_model_fail(
    alone: Reasoner, model: BatchedReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, other = model.start(), model.start()
    counted = Counted(model, monkeypatch, "read")
    counted.gate.clear()
    found: list[object] = []
    calls = [lambda: model.read(row, [20]), lambda: model.prefill(other, turns(0, 1))]
    threads = threading.Thread(target=lambda: found.extend(at_once(calls)))
    threads.start()
    wait_for(lambda: counted.sizes and model._waiting)
    closing = threading.Thread(target=model.close)
    closing.start()
    wait_for(lambda: model._closed)
    counted.gate.set()
    closing.join()
    threads.join()
    assert found[0][0] is row  # it had begun
    assert str(found[1]) == "the batched reasoner is closed"
    with pytest.raises(RuntimeError, match="the batched reasoner is closed"):
        model.start()
    assert not model._worker.is_alive()


def test_nothing_is_compiled_after_the_warm_up(
    alone: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    *others, unpack = alone._parts
    traced = []

    def seen(params: Any) -> Any:  # noqa: ANN401
        traced.append(params)
        return unpack(params)

    monkeypatch.setattr(alone, "_parts", (*others, seen))
    model = BatchedReasoner(alone, 4)
    model._sizes = SIZES
    model.warm_up()
    assert len(traced) == 2 * 3  # sizes; prefills, reads of one token and of several
    at_once([lambda: talk(model, 0), lambda: talk(model, 1)])
    assert len(traced) == 2 * 3
    model.close()


# Tests with agents.


def events(model: Reasoner, agents: int, requests: int) -> list[list[tuple[int, str, str]]]:
    """Numbers, kinds and texts of the events of agents that work at the same time."""
    made = [ReasonerAgent(model, Toolbox(demo_tools([]))) for _ in range(agents)]
    got: list[list[tuple[int, str, str]]] = [[] for _ in made]

    def ended() -> bool:
        for agent, found in zip(made, got, strict=True):
            found.extend((one.delegation, one.kind, one.text) for one in agent.events())
        ends = [one for found in got for one in found if one[1] in (DONE, FAILED)]
        return len(ends) == agents * requests

    for seed, agent in enumerate(made):
        for one in turns(seed, 12):
            agent.observe(one)
        for number in range(requests):
            agent.ask(number, f"seven times {number}")
    wait_for(ended, 120)
    for agent in made:
        agent.close()
    return [sorted(found) for found in got]


def test_agents_work_as_with_a_model_of_their_own(alone: Reasoner, model: BatchedReasoner) -> None:
    """Random weights write random tokens, so the events show what was computed."""
    wanted, found = events(alone, 2, 2), events(model, 2, 2)
    assert found == wanted
    assert any(kind == THINKING or text for _, kind, text in found[0])
    wait_for(lambda: model.free == ROWS)


def test_a_delegation_without_a_row_fails_alone(model: BatchedReasoner) -> None:
    """The record takes one of eight rows, so the eighth delegation has none."""
    agent = ReasonerAgent(model, Toolbox(demo_tools([])))
    for number in range(ROWS):
        agent.ask(number, "seven times eight")
    got: list = []

    def ended() -> bool:
        got.extend(agent.events())
        return sum(one.kind in (FAILED, DONE) for one in got) == ROWS

    wait_for(ended, 60)
    refused = [one.delegation for one in got if "rows: all 8 are taken" in one.text]
    assert refused == [ROWS - 1]
    agent.close()
    wait_for(lambda: model.free == ROWS)
