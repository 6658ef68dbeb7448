"""The input pipeline: contents and order of batches, and restored positions."""

import pathlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from interaction.data import records
from interaction.distributed.sharding import make_mesh, session_sharding
from interaction.training.input_pipeline import InputPipeline, local_rows, make_input_pipeline
from tests.training import toy


def _next(pipeline: InputPipeline, count: int) -> list[np.ndarray]:
    return [next(pipeline.batches)["user"] for _ in range(count)]


def test_batches_hold_arrays_only(tmp_path: pathlib.Path) -> None:
    batch = next(make_input_pipeline(str(toy.write_sessions(tmp_path)), 4, 0).batches)
    shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in batch.items()}
    assert shapes == {
        "user": ((4, toy.TURNS * 3200), "int16"),
        "model": ((4, toy.TURNS * 3200), "int16"),
        "text": ((4, toy.TURNS), "int32"),
        "user_transcript": ((4, toy.TURNS, 2), "int32"),
    }


def test_each_epoch_holds_every_session_in_a_new_order(tmp_path: pathlib.Path) -> None:
    pipeline = make_input_pipeline(str(toy.write_sessions(tmp_path, count=8)), 4, 0)
    epochs = np.concatenate(_next(pipeline, 4))[:, 0].reshape(2, 8)
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert list(epochs[0]) != list(epochs[1])


def test_order_follows_the_seed(tmp_path: pathlib.Path) -> None:
    path = str(toy.write_sessions(tmp_path))
    same, again, other = (_next(make_input_pipeline(path, 4, seed), 3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def test_position_is_restored(tmp_path: pathlib.Path) -> None:
    path = str(toy.write_sessions(tmp_path))
    pipeline = make_input_pipeline(path, 4, 0)
    _next(pipeline, 3)
    state = pipeline.state()
    wanted = _next(pipeline, 6)
    other = make_input_pipeline(path, 4, 0)
    other.restore(state, "test")
    np.testing.assert_array_equal(_next(other, 6), wanted)


def test_bad_data_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="make_sessions"):
        make_input_pipeline(str(tmp_path / "none"), 4, 0)
    with pytest.raises(ValueError, match="batch: got 9, wanted at most the 8"):
        make_input_pipeline(str(toy.write_sessions(tmp_path, count=8)), 9, 0)


def _write(path: pathlib.Path, sessions: list[bytes]) -> str:
    path.parent.mkdir(exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for session in sessions:
        writer.write(session)
    writer.close()
    return str(path)


def test_one_bad_session_is_named_with_its_file_and_number(tmp_path: pathlib.Path) -> None:
    source = records.source(toy.write_sessions(tmp_path / "good"))
    good = [source[at] for at in range(24)]
    half = {name: leaf[: len(leaf) // 2] for name, leaf in source.arrays(5).items()}
    for name, bad, message in (
        ("garbage", b"\xc1garbage", "got 8 bytes that are no MessagePack, .* make it again"),
        ("text", records.encode({**half, "user": "hello"}), "got .'user'. that are no arrays"),
        ("half", records.encode(half), r"user is int16\[6400\], wanted int16\[12800\].*equally"),
        ("less", records.encode({"user": half["user"]}), "model is missing"),
    ):
        _write(tmp_path / name / "a.arrayrecord", good[:10])
        _write(tmp_path / name / "b.arrayrecord", [*good[10:17], bad, *good[18:]])
        pipeline = make_input_pipeline(str(tmp_path / name), 4, 0)
        with pytest.raises(ValueError, match=rf"{name}/b\.arrayrecord: session 7: .*{message}"):
            _next(pipeline, 6)


def test_damaged_files_are_named(tmp_path: pathlib.Path) -> None:
    path = toy.write_sessions(tmp_path / "good") / "sessions.arrayrecord"
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x40  # the sessions are equally long
    (tmp_path / "flipped").write_bytes(flipped)
    pipeline = make_input_pipeline(str(tmp_path / "flipped"), 4, 0)
    with pytest.raises(ValueError, match=r"flipped: session 1[12]: damaged .*copy the file again"):
        _next(pipeline, 6)
    for name, bad in (("cut", data[:-70_000]), ("none", b"none" * 9_999), ("empty", b"")):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{name}: no complete ArrayRecord file .*copy it"):
            make_input_pipeline(str(tmp_path / name), 4, 0)


def test_the_order_is_that_of_all_files_as_one(tmp_path: pathlib.Path) -> None:
    whole = records.source(toy.write_sessions(tmp_path / "one"))
    sessions = [whole[at] for at in range(len(whole))]
    for name, part in (("a", sessions[:5]), ("b", sessions[5:6]), ("c", sessions[6:])):
        _write(tmp_path / "many" / f"{name}.arrayrecord", part)
    many = records.source(tmp_path / "many")
    assert [many[at] for at in range(len(many))] == sessions
    assert many.place(5).endswith("b.arrayrecord: session 0")
    paths = (str(tmp_path / name) for name in ("one", "many"))
    one, other = (_next(make_input_pipeline(path, 4, 3), 12) for path in paths)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_split_the_same_batches(tmp_path: pathlib.Path, processes: int) -> None:
    path = str(toy.write_sessions(tmp_path))
    wanted = make_input_pipeline(path, 8, 0)
    share = 8 // processes
    rows = [range(at * share, (at + 1) * share) for at in range(processes)]
    parts = [make_input_pipeline(path, 8, 0, mine) for mine in rows]
    got = [np.concatenate(turn) for turn in zip(*(_next(part, 7) for part in parts), strict=True)]
    np.testing.assert_array_equal(got, _next(wanted, 7))
    assert all(part.state() == wanted.state() for part in parts)


def test_another_number_of_processes_continues_at_the_position(tmp_path: pathlib.Path) -> None:
    path = str(toy.write_sessions(tmp_path))
    wanted = _next(make_input_pipeline(path, 4, 0), 9)
    seen, state = [], None
    for rows in ([[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0], [1], [2], [3]]):
        pipelines = [make_input_pipeline(path, 4, 0, mine) for mine in rows]
        for pipeline in pipelines:
            if state is not None:
                pipeline.restore(state, "test")
        for _ in range(2):
            batch = {}
            for pipeline, mine in zip(pipelines, rows, strict=True):
                batch.update(zip(mine, next(pipeline.batches)["user"], strict=True))
            seen.append([batch[row] for row in range(4)])
        state = pipelines[0].state()
        assert all(pipeline.state() == state for pipeline in pipelines)
    np.testing.assert_array_equal(seen, wanted[:8])


def test_devices_get_their_rows(tmp_path: pathlib.Path) -> None:
    path = str(toy.write_sessions(tmp_path))
    mesh = make_mesh({"data": 2, "tensor": 2, "fsdp": 2})
    where = session_sharding(mesh)
    assert local_rows(8, where) == list(range(8))
    wanted = next(make_input_pipeline(path, 8, 0).batches)
    got = make_input_pipeline(path, 8, 0, local_rows(8, where)).take(where)
    assert {len(shard.data) for shard in got["user"].addressable_shards} == {2}
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(got[name], leaf)
