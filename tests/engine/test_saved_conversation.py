"""Conversations that are saved, restored in another process, recorded and replayed."""

import pathlib
import threading

import numpy as np
import pytest

from interaction.background.agent import CALL, DONE, RESULT, TEXT, MicroTurn
from interaction.background.delegations import SORRY
from interaction.background.scripted import Line, ScriptedAgent
from interaction.background.tool import tool
from interaction.background.toolbox import Toolbox
from interaction.data.tokenizer import load_tokenizer
from interaction.engine.conversation import Conversation
from interaction.engine.live_model import InteractionModel
from interaction.engine.replay import replay
from interaction.engine.session_record import read
from interaction.types import Special
from tests.background.fakes import SILENCE, FakeModel, ToolAgent, delegate, wait_for
from tests.support import SMALLEST, random_params

END = "</delegate>"
ANSWER = {"seven times eight": [Line(2, TEXT, "it is fifty six"), Line(0, DONE)]}


def take(conversation: Conversation, turns: int) -> None:
    for _ in range(turns):
        conversation.step(SILENCE)


def pcm(seed: int, scale: float = 0.1) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(3_200)).astype(np.float32)


def test_a_seed_of_numpy(tmp_path: pathlib.Path) -> None:
    conversation = Conversation(FakeModel(), seed=np.int64(5), record=tmp_path / "a.session")
    take(conversation, 1)
    conversation.save(tmp_path / "a.conversation")
    assert conversation.close() and read(tmp_path / "a.session").header.seed == 5


def test_nothing_is_called_twice_when_it_moves(tmp_path: pathlib.Path) -> None:
    runs: list[str] = []
    release = threading.Event()

    @tool(timeout_s=None)
    def lamp() -> int:
        """Switches the lamp."""
        runs.append("lamp")
        release.wait(5)
        return 1

    box = Toolbox([lamp])
    script = [*delegate("lamp"), Special.DELEGATE]
    first = ToolAgent(box)
    conversation = Conversation(FakeModel(script), first)
    take(conversation, len(script))
    wait_for(lambda: runs)
    conversation.close()
    conversation.save(tmp_path / "a.conversation")

    second, model = ToolAgent(box), FakeModel([*script, *delegate("lamp")[1:]])
    moved = Conversation.restore(tmp_path / "a.conversation", model, second)
    assert moved.stats.turns == len(script)
    wait_for(lambda: second.observed == len(script))
    wait_for(lambda: (moved.step(SILENCE), len(runs) == 2 and model.given.count(END) == 1)[1])
    assert second.asked == [(2, "lamp")]  # the span that was open when it was saved
    assert model.given == f"{SORRY} {END}"
    take(moved, 20)
    assert runs == ["lamp"] * 2  # one call for each request
    release.set()
    wait_for(lambda: (moved.step(SILENCE), model.given.count(END) == 2)[1])
    assert model.given == f"{SORRY} {END} it is one {END}"
    moved.close()


def test_what_had_called_nothing_is_asked_again(tmp_path: pathlib.Path) -> None:
    update = delegate("nine", Special.UPDATE)
    script = [*delegate("seven times eight"), *update, *delegate("one")]
    lines = {"one": [Line(0, TEXT, "one two three four"), Line(0, DONE)]}
    model = FakeModel(script)
    conversation = Conversation(model, ScriptedAgent(lines))
    take(conversation, len(script) + 1)
    assert model.given == "one two"
    path = tmp_path / "a.conversation"
    conversation.save(path)
    conversation.save(path)
    take(conversation, 5)
    assert model.given == f"one two three four {END}"

    agent = ScriptedAgent({"nine": [Line(0, TEXT, "sixty three"), Line(0, DONE)]})
    other = FakeModel(script)
    restored = Conversation.restore(path, other, agent)
    assert agent.told == [
        ("ask", 1, "seven times eight"),
        ("update", 1, "seven times eight", "nine"),
    ]
    assert len(agent.turns) == len(script) + 1
    take(restored, 10)
    assert other.given == f"three four {END} sixty three {END}"  # the first result was complete


def test_words_given_in_part_are_not_said_again(tmp_path: pathlib.Path) -> None:
    script = delegate("one")
    conversation = Conversation(FakeModel(script), ScriptedAgent({"one": [Line(0, TEXT, "it is")]}))
    take(conversation, 5)
    conversation.save(tmp_path / "a")
    agent, model = ScriptedAgent({}), FakeModel(script)
    restored = Conversation.restore(tmp_path / "a", model, agent)
    take(restored, 5)
    assert agent.told == [] and model.given == f"{SORRY} {END}"


def test_files_that_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.conversation"
    conversation = Conversation(FakeModel(), seed=3)
    take(conversation, 3)
    conversation.save(path)
    other = FakeModel()
    other.params = {"weight": other.params["weight"].at[1].set(7.0)}
    with pytest.raises(ValueError, match="got a file of model"):
        Conversation.restore(path, other)
    data = path.read_bytes()
    for name, bad in (
        ("cut", data[:-9]),
        ("damaged", data[:200] + b"\0\1" + data[202:]),
        ("empty", b""),
        ("foreign", b"PK" + data),
    ):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=name):
            Conversation.restore(tmp_path / name, FakeModel())
    with pytest.raises(ValueError, match="no file"):
        Conversation.restore(tmp_path / "none", FakeModel())
    Conversation.restore(path, FakeModel()).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == data


def test_the_tiny_model_goes_on_and_replays_bit_for_bit(tmp_path: pathlib.Path) -> None:
    config = SMALLEST
    model = InteractionModel(config, random_params(config), load_tokenizer())

    def drive(conversation: Conversation, turns: range) -> list[tuple]:
        replies = []
        for turn in turns:
            text = "one two three" if turn in (2, 11) else None
            reply = conversation.step(pcm(turn), text)
            replies.append(
                (reply.audio.tobytes(), int(reply.text), reply.user_transcript.tobytes())
            )
        return replies

    full = Conversation(model, seed=5, record=tmp_path / "full")
    expected = drive(full, range(20))
    assert full.close()
    half = Conversation(model, seed=5)
    assert drive(half, range(12)) == expected[:12]
    half.save(tmp_path / "half")  # while text waits to be read
    rest = Conversation.restore(tmp_path / "half", model, record=tmp_path / "rest")
    assert drive(rest, range(12, 20)) == expected[12:]
    assert rest.close()

    for name, turns in (("full", 20), ("rest", 8)):
        got = replay(tmp_path / name, model)
        assert got.equal and got.complete and got.turns == turns and not got.difference
    assert any(entry.arrived is not None for entry in read(tmp_path / "rest").entries)
    assert len({one[0] for one in expected}) > 5  # the model speaks

    other = InteractionModel(config, random_params(config, seed=1), load_tokenizer())
    with pytest.raises(ValueError, match="of model"):
        replay(tmp_path / "full", other)


def test_the_record_has_what_happened(tmp_path: pathlib.Path) -> None:
    lines = [Line(1, CALL, '{"tool": "a"}'), Line(1, RESULT, "{}"), Line(0, TEXT, "one")]
    lines = {"one": [*lines, Line(0, DONE)]}
    script = [*delegate("one"), *[Special.SILENT] * 8, Special.CANCEL]
    conversation = Conversation(FakeModel(script), ScriptedAgent(lines), 4, tmp_path / "a")
    take(conversation, 14)
    assert conversation.close()
    record = read(tmp_path / "a")
    assert record.header.seed == 4 and record.header.turn == 0 and record.complete
    kinds = [(entry.turn, note.kind) for entry in record.entries for note in entry.notes]
    asked = len(delegate("one")) - 1
    assert kinds == [
        (asked, "asked"),
        (asked + 2, "call"),
        (asked + 3, "result"),
        (asked + 3, "text"),
        (asked + 3, "done"),
        (asked + 3, "given"),
        (len(script) - 1, "cancelled"),  # what was told a moment ago, so it comes too late
        (len(script) - 1, "failed"),
    ]
    assert isinstance(conversation.session._kept[0], MicroTurn)
