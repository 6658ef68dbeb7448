"""Many sessions on one step: each is as if it were alone, whoever comes, goes, or goes wrong."""

import asyncio
import pathlib
import threading
import time

import jax
import numpy as np
import pytest

from interaction.background.agent import DONE, TEXT
from interaction.background.scripted import Line, ScriptedAgent
from interaction.data.tokenizer import load_tokenizer
from interaction.engine import session_events
from interaction.engine.engine import Engine
from interaction.engine.live_model import InteractionModel
from interaction.engine.rows import FullError
from interaction.engine.session import Session
from interaction.engine.session_record import SessionWriter
from tests.background.fakes import FakeModel, delegate, wait_for
from tests.support import SMALLEST, random_params

CONFIG = SMALLEST
ROWS, TURNS = 3, 12
RNG = np.random.default_rng(0)
PCM = (0.1 * RNG.standard_normal((4, TURNS, CONFIG.audio.turn_samples))).astype(np.float32)
Heard = list[tuple[bytes, int, bytes]]


@pytest.fixture(scope="module")
def model() -> InteractionModel:
    return InteractionModel(CONFIG, random_params(CONFIG), load_tokenizer())


@pytest.fixture
def engine(model: InteractionModel) -> Engine:
    return Engine(model, ROWS, rewind=6)


def take(engine: Engine, *talks: tuple[Session, int, int], text: str | None = None) -> Heard:
    """One micro-turn: sessions with the user and the micro-turn of their PCM; the first's reply."""
    for session, user, turn in talks:
        session.give(PCM[user, turn])
    if text is not None:
        talks[0][0].type(text)
    engine.tick()
    reply = talks[0][0].reply
    return [(reply.audio.tobytes(), int(reply.text), reply.user_transcript.tobytes())]


@pytest.fixture(scope="module")
def alone(model: InteractionModel) -> Heard:
    """What user 0 hears with seed 5 when all other rows are inactive; text comes in turn 4."""
    engine = Engine(model, ROWS)
    session, heard = engine.open(seed=5), []
    for turn in range(TURNS):
        heard += take(engine, (session, 0, turn), text="one" if turn == 4 else None)
    assert len({one[0] for one in heard}) > 4, "it speaks"
    return heard


def test_sessions_that_come_and_go_change_no_bit_of_another(engine: Engine, alone: Heard) -> None:
    first = engine.open(seed=1)
    take(engine, (first, 1, 0))
    mine, heard, second = engine.open(seed=5), [], None
    for turn in range(TURNS):
        talks = [(mine, 0, turn), (first, 1, turn)]
        if turn == 3:
            second = engine.open(seed=2)
        if turn == 5:
            engine.close(first)
            first = engine.open(seed=3)  # in the row of another one
        if turn > 3:
            talks.append((second, 2, turn))
        talks[1] = (first, 1, turn)
        heard += take(engine, *talks, text="one" if turn == 4 else None)
    assert heard == alone


def test_a_row_that_had_another_session_gives_a_fresh_one(engine: Engine, alone: Heard) -> None:
    old = [engine.open(seed=seed) for seed in range(ROWS)]
    for turn in range(TURNS):
        take(engine, *((one, user, turn) for user, one in enumerate(old)))
    engine.close(old[1])
    mine, heard = engine.open(seed=5), []
    for turn in range(TURNS):
        heard += take(engine, (mine, 0, turn), text="one" if turn == 4 else None)
    assert heard == alone


def test_nothing_is_compiled_after_the_engine_is_made(engine: Engine) -> None:
    events: list[str] = []

    def listen(name: str, *_: object, **__: object) -> None:
        events.extend([name] if "backend_compile" in name else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        one = engine.open(seed=1)
        engine.close(engine.fork(one))  # before its first micro-turn
        take(engine, (one, 0, 0), text="two")
        copy = engine.fork(one)
        take(engine, (one, 0, 1), (copy, 1, 1))
        engine.rewind(one, 1)
        engine.close(copy)
        engine.snapshot(one)
        engine.tick()
        assert not events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_saved_forked_and_rewound_sessions_go_on_to_the_bit(
    engine: Engine, model: InteractionModel, alone: Heard, tmp_path: pathlib.Path
) -> None:
    mine, heard = engine.open(seed=5), []
    for turn in range(7):
        if turn == 2:
            engine.save(mine, tmp_path / "two")
        heard += take(engine, (mine, 0, turn), text="one" if turn == 4 else None)
    copy = engine.fork(mine)
    theirs = []
    for turn in range(7, TURNS):
        theirs += take(engine, (copy, 0, turn), (mine, 3, turn))
    assert heard + theirs == alone
    engine.rewind(mine, 5)  # the micro-turns that heard user 3
    for turn in range(7, TURNS):
        heard += take(engine, (mine, 0, turn))
    assert heard == alone
    other = Engine(model, ROWS)
    other.open(seed=9)
    there, later = other.restore(tmp_path / "two"), []
    assert there.stats.turns == 2
    for turn in range(2, TURNS):
        later += take(other, (there, 0, turn), text="one" if turn == 4 else None)
    assert later == alone[2:]


def test_a_session_goes_on_in_a_batch_of_another_size(
    model: InteractionModel, alone: Heard, tmp_path: pathlib.Path
) -> None:
    """Its tokens are the same; bits of the PCM depend on the size of the batch."""
    one = Engine(model, 1)
    mine, heard = one.open(seed=5), []
    for turn in range(4):
        heard += take(one, (mine, 0, turn))
    one.save(mine, tmp_path / "four")
    other = Engine(model, ROWS)
    there = other.restore(tmp_path / "four")
    for turn in range(4, TURNS):
        heard += take(other, (there, 0, turn), text="one" if turn == 4 else None)
    assert [token for _, token, _ in heard] == [token for _, token, _ in alone]


def test_only_what_the_log_has_is_taken_back(engine: Engine) -> None:
    old = engine.open(seed=1)
    for turn in range(4):
        take(engine, (old, 0, turn))
    engine.close(old)
    new = engine.open(seed=2)
    take(engine, (new, 0, 0))
    with pytest.raises(ValueError, match="micro_turns: got 2, wanted an integer of at most 1"):
        engine.rewind(new, 2)
    with pytest.raises(ValueError, match=r"micro_turns: got 1.0, wanted an integer"):
        engine.rewind(new, 1.0)
    engine.rewind(new, 1)
    with pytest.raises(ValueError, match="of at most 0"):
        engine.rewind(new, 1)


def test_a_full_house_and_a_closed_session_are_refused(engine: Engine) -> None:
    sessions = [engine.open(seed=seed) for seed in range(ROWS)]
    with pytest.raises(FullError, match="rows: all 3 are taken"):
        engine.open(seed=4)
    engine.close(sessions[1])
    with pytest.raises(ValueError, match="closed"):
        engine.fork(sessions[1])
    with pytest.raises(ValueError, match="closed"):
        engine.type(sessions[1], "two")
    with pytest.raises(ValueError, match="closed"):
        sessions[1].receive(None, PCM[0, 0])
    assert engine.open(seed=4) and engine.free == 0


def test_a_session_that_cannot_begin_leaves_no_record(
    model: InteractionModel, engine: Engine, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match="seed: got"):
        engine.open(seed=1 << 40, record=tmp_path / "a")
    sessions = [engine.open(seed=seed) for seed in range(ROWS)]
    engine.save(sessions[0], tmp_path / "saved")
    for begin in (engine.open, lambda **to: engine.restore(tmp_path / "saved", **to)):
        with pytest.raises(FullError):
            begin(record=tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    engine.close(sessions[0])
    with pytest.raises(ValueError, match="wanted a new file"):
        engine.open(record=tmp_path / "saved")
    assert engine.free == 1


def test_nobody_waits_for_the_disk_of_a_new_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: pathlib.Path, *rest: object) -> SessionWriter:
        time.sleep(1.0)
        return SessionWriter(path, *rest)

    monkeypatch.setattr("interaction.engine.session.SessionWriter", slow)
    with Engine(FakeModel()) as engine:
        opening = threading.Thread(target=engine.open, args=(None, 1, tmp_path / "a"))
        opening.start()
        before = engine.ticks
        opening.join()
        assert engine.ticks - before >= 3
        assert engine.sessions


def test_a_session_whose_bookkeeping_fails_ends_alone(
    engine: Engine, alone: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, mine, heard = engine.open(seed=1), engine.open(seed=5), []
    told: list[str] = []
    bad.subscribe(lambda event: told.append(f"{event.kind}: {event.text}"))

    def fail(*_: object) -> None:
        raise OSError("no room")

    for turn in range(TURNS):
        if turn == 3:
            monkeypatch.setattr(bad.talk, "read", fail)
        heard += take(engine, (mine, 0, turn), text="one" if turn == 4 else None)
    assert heard == alone and engine.free == ROWS - 1
    assert told[-1] == "closed: OSError: no room"


# Events.


def test_an_app_hears_what_happens_in_order() -> None:
    answer = {"seven times eight": [Line(2, TEXT, "it is fifty six"), Line(0, DONE)]}
    engine = Engine(FakeModel(delegate("seven times eight")))
    session = engine.open(ScriptedAgent(answer))
    events = []
    session.subscribe(lambda event: events.append((event.kind, event.text, event.delegation)))
    session.give(np.full(3_200, 0.5, np.float32))
    for _ in range(12):
        engine.tick()
    engine.close(session)
    lost = session_events.AUDIO_LOST
    assert [event for event in events if event[0] != lost] == [
        (session_events.SPEECH_STARTED, "", 0),
        (session_events.SPEECH_STOPPED, "", 0),
        (session_events.ASKED, "seven times eight", 1),
        (session_events.PROGRESS, "it is fifty six", 1),
        (session_events.DONE, "", 1),
        (session_events.CLOSED, "closed", 0),
    ]


def test_words_of_both_sides_with_their_spaces() -> None:
    tokenizer = load_tokenizer()
    reader = session_events.EventReader(tokenizer.decode)
    silence = np.zeros(3_200, np.float32)
    ids = tokenizer.encode("what time is it")
    found = []
    for turn, token in enumerate(ids):
        reply = session_events.Reply(silence, np.int32(token), np.array([token]), False)
        found += reader.read(turn, reply, [])
    for kind in (session_events.USER_TRANSCRIPT, session_events.MODEL_TEXT):
        assert "".join(event.text for event in found if event.kind == kind) == "what time is it"


@pytest.mark.parametrize("seed", [1.5, "1", None, 1 << 31, -(1 << 31) - 1])
def test_a_seed_that_is_no_number_of_32_bits_is_refused(engine: Engine, seed: object) -> None:
    with pytest.raises(ValueError, match=r"seed: got .*, wanted an integer of 32 bits"):
        engine.open(seed=seed)
    assert engine.free == ROWS


def test_every_reply_is_passed_on_before_its_events(engine: Engine) -> None:
    session, heard = engine.open(seed=5), []
    end = session.on_reply(lambda reply: heard.append(reply.audio.tobytes()))
    session.subscribe(lambda event: heard.append(event.kind))
    wanted = [take(engine, (session, 0, turn))[0][0] for turn in range(TURNS)]
    end()
    take(engine, (session, 0, 0))
    assert [one for one in heard if isinstance(one, bytes)] == wanted
    spoken = next(turn for turn, pcm in enumerate(wanted) if any(pcm))
    assert heard.index(session_events.SPEECH_STARTED) > heard.index(wanted[spoken])


def test_a_subscriber_that_fails_is_dropped_and_no_one_else(engine: Engine) -> None:
    session, heard = engine.open(), []

    def fail(_: object) -> None:
        heard.append("failed")
        raise RuntimeError

    session.subscribe(fail)
    end = session.subscribe(lambda event: heard.append(event.kind))
    session.tell(session_events.SessionEvent(0, "a"))
    session.tell(session_events.SessionEvent(0, "b"))
    end()
    session.tell(session_events.SessionEvent(0, "c"))
    assert heard == ["failed", "a", "b"]


# The engine's own clock.


class Slow(FakeModel):
    """Every step takes a time of a fake clock."""

    def __init__(self, now: list[float], cost_s: float) -> None:
        super().__init__()
        self.now, self.cost_s = now, cost_s

    def step(self, state: dict, chunk: object) -> tuple:
        self.now[0] += self.cost_s
        return super().step(state, chunk)


@pytest.mark.parametrize(("cost_s", "missed"), [(0.05, 0), (0.19, 0), (0.25, 1)])
def test_late_replies_are_counted_for_every_session(cost_s: float, missed: int) -> None:
    now, starts = [100.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds
        time.sleep(0.001)

    engine = Engine(Slow(now, cost_s), clock=lambda: now[0], sleep=sleep)
    session = engine.open()
    session.subscribe(lambda event: starts.append(event.kind))
    engine.start()
    while session.stats.turns < 10:
        time.sleep(0.005)
    engine.stop()
    assert session.closed == "the engine stopped"
    assert bool(session.stats.missed) == bool(missed)
    assert (session_events.DEADLINE_MISSED in starts) == bool(missed)


class Broken(FakeModel):
    """The device fails in the fourth micro-turn."""

    def step(self, state: dict, chunk: object) -> tuple:
        if self.steps == 3:
            raise RuntimeError("out of memory")
        return super().step(state, chunk)


def test_a_device_that_fails_ends_all_sessions_honestly() -> None:
    engine = Engine(Broken())
    session, told = engine.open(), []
    session.subscribe(lambda event: told.append(event.text))
    engine.start()
    wait_for(lambda: session.closed)
    assert "the engine failed: RuntimeError('out of memory')" in told
    with pytest.raises(RuntimeError, match="the engine failed, make another one"):
        engine.open()
    engine.stop()


def test_no_session_waits_for_an_agent_that_does_not_close() -> None:
    class Hangs(ScriptedAgent):
        def close(self) -> None:
            time.sleep(1.0)

    engine = Engine(FakeModel())
    session = engine.open(Hangs({}))
    engine.start()
    session.end_audio()
    began = time.monotonic()
    wait_for(lambda: engine.free == 1)
    ticks = engine.ticks
    wait_for(lambda: engine.ticks > ticks + 1)
    assert time.monotonic() - began < 0.9
    wait_for(lambda: session.closed == "the source ended")
    engine.stop()


def test_sessions_are_opened_and_closed_from_many_threads(engine: Engine) -> None:
    problems: list[Exception] = []

    def visit(seed: int) -> None:
        try:
            for _ in range(5):
                session = engine.open(seed=seed)
                engine.type(session, "one")
                while session.stats.turns < 2:
                    time.sleep(0.01)
                engine.fork(session) if engine.free else None
                for one in [one for one in engine.sessions if one.seed == seed]:
                    engine.close(one)
        except FullError:
            pass
        except Exception as error:
            problems.append(error)

    with engine:
        threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    assert not problems and engine.free == ROWS


def test_an_async_app_opens_an_engine(engine: Engine) -> None:
    async def talk() -> int:
        async with engine:
            session = await asyncio.to_thread(engine.open, seed=1)
            while session.stats.turns < 2:
                await asyncio.sleep(0.01)
            return session.stats.turns

    assert asyncio.run(talk()) >= 2


def test_a_rewind_to_the_beginning_leads_to_the_fresh_session(engine: Engine, alone: Heard) -> None:
    before = [engine.open(seed=seed) for seed in range(ROWS)]
    take(engine, *((session, 1, 0) for session in before))
    for session in before:
        engine.close(session)
    session = engine.open(seed=5)
    first = [take(engine, (session, 0, turn))[0] for turn in range(3)]
    assert first == alone[:3]
    engine.rewind(session, 3)
    assert [take(engine, (session, 0, turn))[0] for turn in range(3)] == first


def test_a_moved_session_keeps_its_microphone_and_its_captions(
    model: InteractionModel, tmp_path: pathlib.Path
) -> None:
    """The gain of a quiet microphone, and words of a request, which are not said."""
    engine, now = Engine(model, ROWS), [0.0]
    session = engine.open(seed=5)
    session._network._clock = lambda: now[0]
    quiet = 0.003 * np.random.default_rng(1).standard_normal((60, CONFIG.audio.turn_samples))
    bursts = [pcm.astype(np.float32) * (n % 4 < 2) for n, pcm in enumerate(quiet)]
    for pcm in bursts[:40]:
        session.receive(None, pcm)
        engine.tick()
    assert session._level.gain_db > 6
    session._events._inside = True  # between the tokens of a request
    engine.save(session, tmp_path / "a")
    moved, fork = engine.restore(tmp_path / "a"), engine.fork(session)
    told: dict[Session, list] = {one: [] for one in (session, moved, fork)}
    for one, events in told.items():
        assert one._level.gain_db == session._level.gain_db
        one.subscribe(lambda event, to=events: to.append(tuple(event)))
    for pcm in bursts[40:]:
        replies = []
        for one in told:
            one.give(one._level(pcm))
        engine.tick()
        replies = [one.reply.audio.tobytes() for one in told]
        assert replies[0] == replies[1] == replies[2]
    assert told[session] == told[moved] == told[fork]
