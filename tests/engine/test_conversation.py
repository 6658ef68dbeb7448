"""The driver of a live conversation, which continues whatever agent, tools and network do."""

import dataclasses
import itertools
import json
import logging
import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from interaction import logs, presets
from interaction.background.agent import DONE, RESULT, TEXT, BackgroundAgent
from interaction.background.delegations import SORRY
from interaction.background.scripted import Line, ScriptedAgent
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.engine.conversation import Conversation
from interaction.engine.session_events import AUDIO_LOST
from interaction.engine.session_record import read
from interaction.types import Special
from tests.background.fakes import SILENCE, FakeModel, ToolAgent, delegate, wait_for

END = "</delegate>"
ANSWER = {"seven times eight": [Line(2, TEXT, "it is fifty six"), Line(0, DONE)]}


def take(conversation: Conversation, turns: int) -> None:
    for _ in range(turns):
        conversation.step(SILENCE)


def pcm(seed: int, scale: float = 0.1) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(3_200)).astype(np.float32)


def test_a_delegation_from_the_text_to_the_ears() -> None:
    script = [*delegate("seven times eight"), Special.HOLD]
    model, agent = FakeModel(script), ScriptedAgent(ANSWER)
    conversation = Conversation(model, agent)
    reply = conversation.step(pcm(1))
    assert reply.audio.shape == (3_200,) and np.array_equal(reply.audio, pcm(1) * np.float32(0.5))
    assert reply.text == Special.DELEGATE and not reply.refused
    take(conversation, 20)
    assert agent.told == [("ask", 1, "seven times eight")]
    assert model.given == f"it is fifty six {END}"
    asked = len(delegate("seven times eight")) - 1
    assert [turn for turn, _ in model.arrived] == [asked + 3, asked + 4, asked + 5]
    assert [int(turn.text) for turn in agent.turns[: len(script)]] == script
    assert np.array_equal(agent.turns[0].audio, pcm(1))
    arrived = [turn.arrived is not None for turn in agent.turns]
    assert arrived == [index in range(asked + 3, asked + 6) for index in range(21)]
    assert conversation.close() and agent.told[-1] == ("close",)
    with pytest.raises(ValueError, match="closed"):
        conversation.step(SILENCE)


def test_everything_is_compiled_before_the_first_micro_turn() -> None:
    model = FakeModel()
    Conversation(model)
    assert model.compiled == (1, False) and model.steps == 0
    Conversation(model, frames=True)
    assert model.compiled == (1, True)


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros(3_199, np.float32), "float32[3199]"),
        (np.zeros(3_200, np.int16), "int16[3200]"),
        (np.zeros((1, 3_200), np.float32), "float32[1, 3200]"),
        (np.full(3_200, np.nan, np.float32), "NaN"),
        (np.full(3_200, 3, np.float32), "outside [-2.0, 2.0]"),
        ([0.0] * 3_200, "got list[3200], wanted float32"),
        (None, "got NoneType[], wanted float32"),
    ],
)
def test_bad_audio_is_refused_and_nothing_is_done(audio: object, words: str) -> None:
    model = FakeModel()
    conversation = Conversation(model)
    steps = model.steps
    with pytest.raises(ValueError, match="audio: got") as caught:
        conversation.step(audio, text="one")
    assert words in str(caught.value)
    with pytest.raises(ValueError, match="audio: got"):
        conversation.receive(0, audio)
    assert model.steps == steps
    take(conversation, 2)
    assert model.given == "" and conversation.stats.turns == 2


def test_frames_and_text_that_are_refused() -> None:
    size = presets.tiny().frame_size
    good = np.zeros((size, size, 3), np.float32)
    with pytest.raises(ValueError, match="frames=True"):
        Conversation(FakeModel()).step(SILENCE, frame=good)
    conversation = Conversation(FakeModel(), frames=True)
    for bad in (good[:-1], good.astype(np.uint8), good + 2, good * np.nan):
        with pytest.raises(ValueError, match="frame: got"):
            conversation.tick(frame=bad)
    with pytest.raises(ValueError, match="text: got"):
        conversation.tick(text="one " * 600, frame=good)
    assert conversation.stats.turns == 0
    conversation.tick(frame=good)


def test_what_a_model_was_not_trained_on_is_refused() -> None:
    deaf = FakeModel()
    deaf.config = dataclasses.replace(deaf.config, trained_on_text=False, trained_on_frames=False)
    with pytest.raises(ValueError, match="frame: got video, wanted none"):
        Conversation(deaf, frames=True)
    conversation = Conversation(deaf)
    with pytest.raises(ValueError, match="text: got typed text, wanted none"):
        conversation.step(SILENCE, text="what is the capital of japan")
    take(conversation, 2)
    assert deaf.given == "" and conversation.stats.turns == 2
    assert not presets.demo().trained_on_text and not presets.demo().trained_on_frames


def test_text_from_outside_comes_in_slots() -> None:
    model = FakeModel()
    conversation = Conversation(model)
    conversation.step(SILENCE, text="one two three")
    conversation.step(SILENCE, text="four")
    take(conversation, 3)
    assert model.given == "one two three four"
    assert [len(tokens) for _, tokens in model.arrived] == [2, 2]


# From a network.


def test_chunks_of_a_network_are_heard_in_order_and_losses_are_told() -> None:
    conversation, told = Conversation(FakeModel()), []
    conversation.subscribe(lambda event: told.append((event.turn, event.kind)))
    for index in (0, 1, 2, 1, 4, 5, 6):
        conversation.receive(index, pcm(index))
        conversation.tick()
    heard = [turn.audio for turn in conversation.session._kept]
    for index in range(3):
        np.testing.assert_array_equal(heard[index], pcm(index))
    stats = conversation.stats
    assert (stats.lost, stats.late, stats.doubled) == (1, 0, 1) and stats.turns == 7
    assert any(kind == AUDIO_LOST for _, kind in told)
    conversation.step(pcm(9))
    np.testing.assert_array_equal(conversation.session._kept[-1].audio, pcm(9))


def test_a_chunk_is_looked_at_before_the_buffer_is_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk, free = Conversation(FakeModel()), []

    def check(config: object, name: str, pcm: np.ndarray) -> np.ndarray:
        free.append(not talk.session._network._lock.locked())
        return pcm

    monkeypatch.setattr("interaction.engine.session.checked", check)
    talk.receive(0, SILENCE)
    assert free == [True]


@pytest.mark.parametrize("index", [-1, 1.0, "0", True, float("nan")])
def test_wild_numbers_are_refused(index: object) -> None:
    conversation = Conversation(FakeModel())
    with pytest.raises(ValueError, match="index: got"):
        conversation.receive(index, SILENCE)
    conversation.receive(np.int64(49), pcm(1))
    conversation.tick()
    np.testing.assert_array_equal(conversation.session._kept[-1].audio, pcm(1))


def test_what_a_conversation_keeps_is_bounded() -> None:
    conversation = Conversation(FakeModel())
    take(conversation, 600)
    assert len(conversation.session._kept) == 300


# A sound card.


def waiting(chunks: int, wait_s: float = 0.2) -> Iterator[np.ndarray]:
    """A microphone: each chunk exists when its sound was recorded; one is damaged."""
    for index in range(chunks):
        time.sleep(wait_s)
        yield pcm(index) if index != 5 else np.full(3_200, np.nan, np.float32)


def test_a_microphone_that_waits_is_heard_without_missed_deadlines() -> None:
    conversation, played = Conversation(FakeModel()), []
    conversation.run(waiting(10), lambda reply: played.append(reply.audio))
    stats = conversation.stats
    assert stats.missed < 3 and stats.refused == 1  # some on a busy machine, not one a wait
    heard = {turn.audio.tobytes() for turn in conversation.session._kept}
    assert sum(pcm(index).tobytes() in heard for index in range(10)) >= 6  # all if it is not busy
    assert len(played) == stats.turns <= 14


def test_a_loudspeaker_that_is_slow_stops_no_one_and_hears_all_speech_it_can() -> None:
    conversation, played = Conversation(FakeModel()), []

    def slow(reply: object) -> None:
        time.sleep(0.3)
        played.append(reply)

    began = time.monotonic()
    conversation.run(waiting(8), slow)
    assert conversation.stats.missed < 3 and time.monotonic() - began < 6
    assert 4 <= len(played) < conversation.stats.turns


def test_errors_of_the_source_and_the_sink_are_raised() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield pcm(0)
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        Conversation(FakeModel()).run(broken(), lambda reply: None)

    def deaf(_: object) -> None:
        raise OSError("no loudspeaker")

    with pytest.raises(OSError, match="no loudspeaker"):
        Conversation(FakeModel()).run(waiting(8), deaf)


# A file.


class Time:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_the_loop_keeps_time_and_counts_what_it_misses(caplog: pytest.LogCaptureFixture) -> None:
    fake = Time()
    conversation = Conversation(FakeModel(), clock=fake.clock, sleep=fake.sleep)
    costs = itertools.chain([0.05, 0.05, 0.5, 0.05, 0.05, 20.0], itertools.repeat(0.05))
    starts: list[float] = []

    def sink(_: object) -> None:
        starts.append(round(fake.now - 100, 3))
        fake.now += next(costs)

    source = iter([pcm(0)] * 5 + [np.full(3_200, 9, np.float32)] + [None] * 3)
    conversation.play(source, sink)
    assert starts[:6] == [0, 0.2, 0.4, 0.9, 0.95, 1.0]
    assert starts[6] == 21 and starts[7:] == pytest.approx([21.2, 21.4])  # the clock restarts
    assert conversation.stats.missed == 3
    logs.flush()
    assert len([one for one in caplog.records if "ms late" in one.message]) == 3
    assert conversation.stats.refused == 1  # the chunk out of range, as which silence is heard


def test_a_log_that_hangs_costs_the_driver_nothing() -> None:
    release = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            release.wait(10)

    handler = Stuck()
    logging.getLogger("interaction").addHandler(handler)
    try:
        model = FakeModel(delegate("one") * 200)
        fake = Time()
        conversation = Conversation(model, Raising(), clock=fake.clock, sleep=fake.sleep)

        def late(_: object) -> None:
            fake.now += 1

        began = time.monotonic()
        conversation.play(iter([SILENCE] * 1_200), late)
        assert time.monotonic() - began < 8
        assert conversation.stats.missed == 1_200
        assert logs._waiting.qsize() <= 1_000
    finally:
        release.set()
        logs.flush(5)
        logging.getLogger("interaction").removeHandler(handler)


# Tools and agents that go wrong.


def _bad_tools(runs: list[str]) -> list:
    @tool(timeout_s=0.3)
    def hang() -> int:
        """Hangs."""
        runs.append("hang")
        time.sleep(2)
        return 1

    @tool
    def wait() -> int:
        """Takes half a second."""
        runs.append("wait")
        time.sleep(0.5)
        return 1

    @tool
    def throw() -> int:
        """Raises."""
        runs.append("throw")
        raise RuntimeError("x" * 10_000_000)

    @tool
    def flood() -> dict:
        """Returns too much."""
        runs.append("flood")
        return {"a": "x" * 10_000_000, "b": ["y"] * 1_000_000}

    @tool
    def strange() -> object:
        """Returns a function, which JSON cannot represent."""
        runs.append("strange")
        return len

    return [hang, wait, throw, flood, strange]


def test_no_tool_costs_the_driver_anything(tmp_path: pathlib.Path) -> None:
    runs: list[str] = []
    names = ["hang", "wait", "throw", "flood", "strange", "gone"]
    script: list[int] = [token for name in names for token in delegate(name)]
    model, agent = FakeModel(script), ToolAgent(Toolbox(_bad_tools(runs)))
    conversation = Conversation(model, agent, record=tmp_path / "a.session")
    times: list[float] = []
    end = time.monotonic() + 20
    while model.given.count(END) < len(names) and time.monotonic() < end:
        conversation.step(pcm(len(times)))
        times.append(conversation.stats.driver_s)
        time.sleep(0.01)
    assert model.given.count(f"it is one {END}") == len(names)
    assert sorted(runs) == sorted(set(runs)) == sorted(names[:-1])  # once each
    assert max(times) < 0.2  # s of a micro-turn
    assert conversation.close()
    notes = [note for entry in read(tmp_path / "a.session").entries for note in entry.notes]
    results = {note.delegation: json.loads(note.text) for note in notes if note.kind == RESULT}
    assert results[1] == {"error": "hang: no result after 0.3 s"}
    assert results[2] == {"result": 1}
    assert results[3]["error"].startswith("RuntimeError: x") and len(results[3]["error"]) < 300
    assert results[4]["cut"] is True
    assert "builtin_function" in results[5]["error"] and "no tool 'gone'" in results[6]["error"]


class Dying(ToolAgent):
    """Dies in the middle of its first answer."""

    def work(self) -> bool:
        for number in self.running:
            self.emit(number, TEXT, "it is")
            if number == 1:
                raise SystemExit
            self.emit(number, DONE)
        return False

    def on_ask(self, delegation: int, request: str) -> None:
        self.asked.append((delegation, request))


def test_an_agent_that_dies_in_mid_answer_comes_back() -> None:
    model = FakeModel([*delegate("one"), *[Special.SILENT] * 10, *delegate("two")])
    agent = Dying(Toolbox([]))
    conversation = Conversation(model, agent)
    wait_for(lambda: (conversation.step(SILENCE), model.given.count(END) == 2)[1])
    assert model.given == f"{SORRY} {END} it is {END}"
    assert agent.asked == [(1, "one"), (2, "two")]
    conversation.close()


class Raising(BackgroundAgent):
    """Raises an error in every method."""

    def _raise(self, *_: object) -> None:
        raise ConnectionError

    observe = ask = update = cancel = events = close = fits = _raise


def test_an_agent_that_always_raises() -> None:
    model = FakeModel(delegate("one") * 2)
    conversation = Conversation(model, Raising())
    take(conversation, 20)
    assert model.given == f"{SORRY} {END} {SORRY} {END}"
    assert conversation.close()


# A conversation as a file.
