"""Records: equal bit for bit, of bounded size, with damage detected."""

import contextlib
import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from interaction import presets
from interaction.background.delegations import Note
from interaction.distributed import sharding
from interaction.engine import session_file, session_record
from interaction.engine.conversation import Conversation
from interaction.engine.replay import replay
from interaction.engine.session_record import Entry, Header, SessionWriter, read
from interaction.pretrained import fingerprints
from interaction.pretrained.fingerprints import fingerprint
from tests.background.fakes import SILENCE, FakeModel
from tests.support import random_params

HEADER = Header("0" * 32, {}, 3, 0, None, 12.5)


def entry(turn: int, audio: np.ndarray | None = None, **more: object) -> Entry:
    rng = np.random.default_rng(turn)
    speech = rng.standard_normal(3_200).astype(np.float32)
    fields = {"arrived": None, "frame": None, "notes": []} | more
    audio = SILENCE if audio is None else audio
    user_transcript = np.array([3, 3], np.int32)
    return Entry(
        turn, 1.5, audio, text=turn, user_transcript=user_transcript, speech=speech, **fields
    )


def same(got: Entry, wanted: Entry) -> bool:
    for one, other in zip(got, wanted, strict=True):
        if isinstance(other, np.ndarray):
            if one.dtype != other.dtype or one.shape != other.shape:
                return False
            if one.tobytes() != other.tobytes():
                return False
        elif one != other:
            return False
    return True


def written(path: pathlib.Path, entries: list[Entry]) -> bytes:
    writer = SessionWriter(path, HEADER)
    for one in entries:
        writer.put(one)
    assert writer.close([])
    return path.read_bytes()


def starts(path: pathlib.Path) -> list[int]:
    """Index of the first byte of each map."""
    found = []
    with session_file.MapReader(path, session_record.MAGIC) as file, contextlib.suppress(EOFError):
        while True:
            file.read()
            found.append(file.start)
    return found


AUDIO = {
    "int16": (np.arange(-1_600, 1_600) * 20 / 32_768).astype(np.float32),
    "least": np.full(3_200, -1, np.float32),
    "float32": np.random.default_rng(0).standard_normal(3_200).astype(np.float32),
    "negative zero": -SILENCE,
    "loud": np.full(3_200, 1.5, np.float32),
}


@pytest.mark.parametrize("audio", AUDIO.values(), ids=AUDIO.keys())
def test_every_input_comes_back_bit_for_bit(tmp_path: pathlib.Path, audio: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    eight = (rng.integers(0, 256, (4, 4, 3)) / np.float32(255)).astype(np.float32)
    entries = [
        entry(0, audio),
        entry(1, audio, arrived=np.array([9, 0], np.int32), frame=eight),
        entry(2, audio, frame=rng.random((4, 4, 3)).astype(np.float32)),
        entry(3, audio, notes=[Note(1.25, 1, "text", "é\n"), Note(1.5, 2, "done")]),
    ]
    size = len(written(tmp_path / "a", entries))
    record = read(tmp_path / "a")
    assert record.complete and record.problem == "" and record.header == HEADER
    assert all(map(same, record.entries, entries)) and len(record.entries) == 4
    if audio is AUDIO["least"]:
        assert size < 4 * 13_600  # bytes, of which 12,800 are random speech


def test_a_record_without_an_end_is_read_up_to_there(tmp_path: pathlib.Path) -> None:
    data = written(tmp_path / "a", [entry(turn) for turn in range(3)])
    ends = starts(tmp_path / "a")
    for cut in range(ends[2] - 1, len(data), 97):
        (tmp_path / "b").write_bytes(data[:cut])
        record = read(tmp_path / "b")
        complete = sum(cut >= end for end in ends[2:])
        assert len(record.entries) == complete and not record.complete
        wanted = "not closed" if cut in ends else "cut off in the middle of an entry"
        assert wanted in record.problem
    (tmp_path / "b").write_bytes(data[: ends[3]] + bytes(4_096))  # space that was never written
    assert len(read(tmp_path / "b").entries) == 2
    (tmp_path / "b").write_bytes(data[: ends[1] - 5])
    with pytest.raises(ValueError, match="in its header"):
        read(tmp_path / "b")


def test_damage_is_found_and_named(tmp_path: pathlib.Path) -> None:
    data = bytearray(written(tmp_path / "a", [entry(turn) for turn in range(3)]))
    for place in range(0, len(data), 1_001):
        bad = data.copy()
        bad[place] ^= 0x40
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad: (damaged|got another kind)"):
            read(tmp_path / "bad")
    maps = starts(tmp_path / "a")
    for name, bad, message in (
        ("gap", data[: maps[2]] + data[maps[3] :], "micro-turn 1 is missing"),
        ("short", data[: maps[3]] + data[maps[4] :], "got 2 micro-turns, wanted the 3"),
        ("long", data + data[maps[2] :], "goes on after its end"),
    ):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    other = session_record.MAGIC + b"".join(session_file.pack_map({"version": 9}))
    (tmp_path / "other").write_bytes(other)
    with pytest.raises(ValueError, match="version 9, wanted 3"):
        read(tmp_path / "other")
    with pytest.raises(ValueError, match="wanted a new file"):
        SessionWriter(tmp_path / "a", HEADER)


class StuckFile:
    """A disk that does not respond until it is released, or that fails."""

    def __init__(self, file: object, refuse: bool = False) -> None:
        self.file = file
        self.release = threading.Event()
        self.refuse = refuse

    def write(self, data: bytes) -> int:
        if self.refuse:
            raise OSError(28, "No space left on device")
        self.release.wait(10)
        return self.file.write(data)

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


def test_a_stuck_disk_is_counted_and_the_talk_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[StuckFile] = []

    def stuck(*args: object, **kwargs: object) -> StuckFile:
        files.append(StuckFile(open(*args, **kwargs)))
        return files[-1]

    monkeypatch.setattr(session_record, "open", stuck, raising=False)
    conversation = Conversation(FakeModel(), record=tmp_path / "a")
    for _ in range(400):
        conversation.step(SILENCE)
    assert conversation.stats.turns == 400
    assert conversation.stats.unrecorded >= 99
    assert conversation.stats.slowest_driver_s < 0.2
    files[0].release.set()
    time.sleep(0.05)
    for _ in range(5):
        conversation.step(SILENCE)
    assert not conversation.close()
    record = read(tmp_path / "a")
    assert not record.complete and "disk was stuck" in record.problem
    assert len(record.entries) + conversation.stats.unrecorded == 405
    got = replay(tmp_path / "a", FakeModel())
    assert got.equal and not got.complete and "lost" in got.problem


def test_a_full_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> StuckFile:
        return StuckFile(open(*args, **kwargs), refuse=True)

    monkeypatch.setattr(session_record, "open", full, raising=False)
    conversation = Conversation(FakeModel(), record=tmp_path / "a")
    time.sleep(0.05)
    for _ in range(10):
        conversation.step(SILENCE)
    assert conversation.stats.turns == 10 and conversation.stats.unrecorded == 10
    assert not conversation.close()


def test_closing_does_not_wait_for_ever(tmp_path: pathlib.Path) -> None:
    writer = SessionWriter(tmp_path / "a", HEADER)
    time.sleep(0.05)
    writer._file = StuckFile(writer._file)
    writer.put(entry(0))
    start = time.monotonic()
    assert not writer.close([], wait_s=0.2)
    assert time.monotonic() - start < 2


def test_a_replay_that_differs_says_where(tmp_path: pathlib.Path) -> None:
    conversation = Conversation(FakeModel([9, 9, 9, 9]), record=tmp_path / "a")
    for _ in range(4):
        conversation.step(SILENCE)
    assert conversation.close()
    assert replay(tmp_path / "a", FakeModel([9, 9, 9, 9])).equal
    got = replay(tmp_path / "a", FakeModel([9, 9, 8, 9]))
    assert not got.equal and got.difference == "text of micro-turn 2"


def test_the_fingerprint_sees_every_bit_and_no_device() -> None:
    config = presets.tiny()
    params = random_params(config)
    name = fingerprint(config, params)
    assert name == fingerprint(config, random_params(config)) and len(name) == 32
    mesh = sharding.make_mesh({"data": 2, "expert": 4})
    for shape, axes in (((4, 6), ("expert", None)), ((3, 8), (None, "data")), ((), ())):
        for dtype in (jnp.float32, jnp.bfloat16):
            leaf = jax.random.normal(jax.random.key(1), shape).astype(dtype)
            placed = jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))
            place = ((0,) * leaf.ndim,)
            far = jax.jit(lambda one, place=place: fingerprints.fold(one, *place, jnp))(placed)
            assert np.array_equal(fingerprints.fold(np.asarray(leaf), *place, np), far)
            assert fingerprint(config, {"a": placed}) == fingerprint(config, {"a": leaf})
    small = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}
    names = [fingerprint(config, small)]
    for other in (
        {**small, "a": small["a"].at[1, 2].set(5.0000005)},
        {**small, "a": small["a"].at[0, 0].set(-0.0)},
        {**small, "a": small["a"][::-1]},
        {**small, "a": small["a"].reshape(3, 2)},
        {**small, "b": small["b"].at[2].set(1.0078125)},
        {"a": small["a"], "c": small["b"]},
    ):
        names.append(fingerprint(config, other))
    assert len(set(names)) == len(names)
    assert fingerprint(presets.demo(), small) != names[0]
