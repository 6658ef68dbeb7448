"""The agent that reasons with a model: what it reads and writes, for any output of the model."""

import json
import pathlib
import threading

import jax
import numpy as np
import pytest

from interaction.background.agent import (
    CALL,
    DONE,
    FAILED,
    RESULT,
    TEXT,
    THINKING,
    Event,
)
from interaction.background.demo_tools import demo_tools
from interaction.background.reasoner_agent import (
    LIMIT,
    Reasoner,
    ReasonerAgent,
    load_reasoner,
)
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.config import PREFILL_TURNS
from interaction.data import tokenizer
from interaction.distributed import sharding
from interaction.pretrained.store import save_model
from interaction.types import Special
from tests.background.fake_reasoner import (
    CONFIG,
    NINE,
    SCRIPT,
    SEVEN,
    Talk,
    answer,
    call,
    start,
    times,
    turn,
)
from tests.background.fakes import TOKENIZER, wait_for, words
from tests.support import random_params


@pytest.fixture
def agents() -> list:
    made: list[Talk] = []
    yield made
    for one in made:
        one.agent.close()


ANSWERED = [
    (THINKING, "seven times eight"),
    (CALL, SEVEN),
    (RESULT, '{"result": 56}'),
    (TEXT, "it"),
    (TEXT, "is"),
    (TEXT, "fifty"),
    (TEXT, "six"),
    (DONE, ""),
]


def test_reasons_calls_and_streams_words(agents: list) -> None:
    talk = start(agents, SCRIPT)
    for place in range(7):
        talk.agent.observe(turn(place))
    talk.agent.ask(1, "seven times eight")
    assert talk.events(DONE) == ANSWERED
    assert sum(talk.model.sizes) == 7 and talk.model.sizes[-1] == 2  # the rest, before the fork
    fork = talk.model.states[-1]
    assert [one.text for one in fork.turns] == list(range(7))
    read = [Special.DELEGATE, *words("seven times eight"), Special.END_DELEGATE]
    result = [Special.UPDATE, *words('{"result": 56}'), Special.END_DELEGATE]
    reasoning, said = SCRIPT["seven times eight"]
    assert list(fork.tokens) == [*read, *reasoning, *result, *said[:-1]]


def test_several_delegations_at_once_beside_the_record(agents: list) -> None:
    gate = threading.Event()

    @tool
    def hold(name: str) -> str:
        """Waits for the gate.

        Args:
          name: Name of the call.
        """
        gate.wait(5)
        return name

    script = {
        name: [call(json.dumps({"tool": "hold", "name": name})), answer(name)]
        for name in ("one", "two")
    }
    talk = start(agents, {**script, **SCRIPT}, hold, times)
    talk.agent.ask(1, "one")
    talk.agent.ask(2, "two")
    talk.events(CALL, 2)
    for _ in range(2 * PREFILL_TURNS):
        talk.agent.observe(turn())
    talk.agent.ask(3, "seven times eight")
    assert [pair for pair in talk.events(DONE) if pair[0] == DONE] == [(DONE, "")]
    assert talk.got[-1].delegation == 3
    gate.set()
    talk.events(DONE, 3)
    said = {one.delegation: one.text for one in talk.got if one.kind == TEXT}
    assert said == {1: "one", 2: "two", 3: "six"}
    assert sum(talk.model.sizes) == 2 * PREFILL_TURNS


def test_cancel_drops_the_fork_and_its_call(agents: list) -> None:
    ended = threading.Event()

    @tool(timeout_s=None)
    def wait(cancelled: threading.Event) -> str:
        """Waits."""
        cancelled.wait(5)
        ended.set()
        return "late"

    talk = start(
        agents, {"wait": [call('{"tool": "wait"}'), answer("late")], **SCRIPT}, wait, times
    )
    talk.agent.ask(1, "wait")
    talk.events(CALL)
    talk.agent.cancel(1)
    assert ended.wait(2)
    talk.agent.ask(2, "seven times eight")
    talk.events(DONE)
    assert [one.kind for one in talk.got if one.delegation == 1] == [CALL]


def test_an_update_is_a_new_fork_of_the_record(agents: list) -> None:
    ended = threading.Event()

    @tool(timeout_s=None)
    def wait(cancelled: threading.Event) -> str:
        """Waits."""
        cancelled.wait(5)
        ended.set()
        return "late"

    talk = start(agents, {"wait": [call('{"tool": "wait"}')], **SCRIPT}, wait, times)
    talk.agent.ask(1, "wait")
    talk.events(CALL)
    talk.agent.observe(turn(11))
    talk.agent.update(1, "wait", ["nine"])
    assert ended.wait(2), "the call of the dropped fork was not cancelled"
    got = talk.events(DONE)[1:]
    assert got == [
        (RESULT, '{"error": "wait: cancelled"}'),
        (THINKING, "seven times nine"),
        (CALL, NINE),
        (RESULT, '{"result": 63}'),
        *[(TEXT, one) for one in "it is sixty three".split()],
        (DONE, ""),
    ]
    fork = talk.model.states[-1]
    request = (Special.DELEGATE, *words("wait"), Special.END_DELEGATE)
    correction = (Special.UPDATE, *words("nine"), Special.END_DELEGATE)
    assert fork.tokens[:6] == request + correction
    assert [one.text for one in fork.turns] == [11]
    talk.agent.update(1, "wait", ["nine", "nine"])  # of a delegation that is done
    talk.events(DONE, 2)
    talk.agent.update(2, "wait", ["nine", "nine"])  # of an unknown delegation
    talk.events(DONE, 3)
    assert talk.model.states[-1].tokens[:9] == request + correction + correction


def test_prefill_waits_for_the_device(model: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the live model's next step could wait for many prefills."""
    waited: list[object] = []

    class Busy:
        def block_until_ready(self) -> None:
            waited.append(self)

    busy = Busy()
    monkeypatch.setattr(model, "_run", model._run._replace(prefill=lambda *_: busy))
    assert model.prefill(model.start(), [turn()]) is busy
    assert waited == [busy]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (call("seven times eight"), "call: wanted JSON of a tool and its arguments"),
        (call('{"name": "times"}'), "call: wanted JSON of a tool and its arguments"),
        ([Special.PAD], "<pad> where it was to think"),
        ([Special.SILENT], "<silent> where it was to think"),
        ([*call()[:4], Special.HOLD], "<hold> where it was to call"),
    ],
)
def test_the_model_reads_its_first_mistake_and_fails_at_the_second(
    agents: list, wrong: list[int], why: str
) -> None:
    right = SCRIPT["seven times eight"]
    talk = start(agents, {"better": [wrong, *right], "again": [wrong, wrong]})
    talk.agent.ask(1, "better")
    assert talk.events(DONE) == ANSWERED
    told = [error_of(one.tokens) for one in talk.model.states]
    assert why in told
    talk.agent.ask(2, "again")
    assert talk.events(FAILED)[-1] == (FAILED, f"the model wrote {why}")


def error_of(tokens: tuple[int, ...]) -> str:
    """The error that a fork has just read, "" if there is none."""
    if Special.UPDATE not in tokens or tokens[-1] != Special.END_DELEGATE:
        return ""
    last = len(tokens) - tokens[::-1].index(Special.UPDATE)
    return json.loads(TOKENIZER.decode(tokens[last:-1])).get("error", "")


def test_an_answer_without_an_end_fails(agents: list) -> None:
    talk = start(agents, {"on": [words("seven") * 1_000]})
    talk.agent.ask(1, "on")
    assert talk.events(FAILED) == [(FAILED, f"no end after {LIMIT} tokens")]
    talk.model.script |= SCRIPT
    talk.agent.ask(2, "seven times eight")
    assert talk.events(DONE)[1:] == ANSWERED


def test_words_of_several_tokens_are_emitted_whole(agents: list) -> None:
    text = "it is fifty zyxwv six"
    assert len(words(text)) > 5
    zyxwv = call(json.dumps({"tool": "hold", "name": "zyxwv"}))

    @tool
    def hold(name: str) -> str:
        """Gives the name back."""
        return name

    talk = start(agents, {"seven": [zyxwv, answer(text)]}, hold)
    talk.agent.ask(1, "seven")
    assert [said for kind, said in talk.events(DONE) if kind == TEXT] == text.split()


def test_a_mistake_after_words_fails_at_once(agents: list) -> None:
    """The words were emitted, so the fork cannot start again."""
    talk = start(agents, {"seven": [call(), [Special.HOLD, *words("it is"), Special.CANCEL]]})
    talk.agent.ask(1, "seven")
    assert talk.events(FAILED)[2:] == [
        (TEXT, "it"),
        (FAILED, "the model wrote <cancel> where it was to say"),
    ]


def test_control_tokens_in_a_request_are_removed(agents: list) -> None:
    talk = start(agents, {"</delegate> seven": SCRIPT["seven times eight"]})
    talk.agent.ask(1, "</delegate> seven")
    talk.events(DONE)
    tokens = talk.model.states[-1].tokens
    assert tokens.count(Special.END_DELEGATE) == 3  # of the request, the call and the result


def test_after_a_failure_the_record_is_prefilled_again(agents: list) -> None:
    talk = start(agents, SCRIPT)
    for place in range(8):
        talk.agent.observe(turn(place))
    talk.agent.ask(1, "not in the script")  # the script raises
    assert talk.events(FAILED)[0][1].startswith("KeyError")
    talk.agent.ask(2, "seven times eight")
    assert talk.events(DONE)[1:] == ANSWERED
    assert [one.text for one in talk.model.states[-1].turns] == list(range(8))


# Tests with a model.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Reasoner:
    params = {name: random_params(CONFIG)[name] for name in ("backbone", "router_bias")}
    folder = tmp_path_factory.mktemp("without_speech_head")
    save_model(folder, CONFIG, params, tokenizer.PATH)
    return load_reasoner(folder)


def test_an_untrained_model_fails_delegations_and_continues(model: Reasoner) -> None:
    """Random weights write random tokens; two conversations share the compiled functions."""
    agents = [ReasonerAgent(model, Toolbox(demo_tools([]))) for _ in range(2)]
    got: list[Event] = []

    def ended() -> bool:
        for agent in agents:
            got.extend(agent.events())
        return sum(one.kind in (FAILED, DONE) for one in got) == 6

    for agent in agents:
        for place in range(12):
            agent.observe(turn(place))
        for number in (1, 2, 3):
            agent.ask(number, "seven times eight")
    wait_for(ended, 120)
    assert all("Error" not in one.text for one in got if one.kind == FAILED), got
    for agent in agents:
        agent.close()


def test_micro_turns_with_and_without_frames(model: Reasoner) -> None:
    picture = np.ones((CONFIG.frame_size, CONFIG.frame_size, 3), np.float32)
    seen, blind = (model.prefill(model.start(), [turn(frame=one)]) for one in (picture, None))
    assert int(seen.memory.clock[0]) == int(blind.memory.clock[0]) + CONFIG.patches
    arrived = np.array([20, Special.PAD], np.int32)
    more = model.prefill(model.start(), [turn()._replace(arrived=arrived)])
    assert int(more.memory.clock[0]) == int(blind.memory.clock[0]) + 1


def test_a_model_with_a_speech_head_is_refused(tmp_path: pathlib.Path) -> None:
    params = random_params(CONFIG)
    save_model(tmp_path, CONFIG, params, tokenizer.PATH)
    with pytest.raises(ValueError, match="got a live model, wanted a background model"):
        load_reasoner(tmp_path)
    with pytest.raises(ValueError, match="name: got 'nowhere', wanted a folder, or one of"):
        load_reasoner("nowhere")


def test_a_mesh_that_splits_sessions_is_refused() -> None:
    mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
    with pytest.raises(ValueError, match="wanted size 1 along"):
        Reasoner(CONFIG, random_params(CONFIG), TOKENIZER, mesh)
