"""Session files with crafted content, and files of hours: clear errors and bounded memory."""

import pathlib
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from interaction.background.delegations import Delegation
from interaction.engine import session_file
from interaction.engine.replay import replay
from interaction.engine.session_record import SessionReader, SessionWriter, new_header, read
from interaction.engine.typed_values import Fields, typed
from interaction.evaluation.crafted_files import fuzz_session_files
from interaction.pretrained.fingerprints import fingerprint
from interaction.types import Note
from tests.background.fakes import SILENCE, FakeModel
from tests.engine.test_session_record import HEADER, entry, written


def memory_mb(run: Callable[[], Any]) -> float:
    """The most memory that a call takes, MB."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_crafted_files_give_one_clear_error_each() -> None:
    found = fuzz_session_files(400, seed=3)
    assert found["unclear"] == []
    # A record that is cut off, and a change that leaves another usable value, are no errors.
    assert found["cut_off"] <= 24 and found["harmless"] <= 8
    assert found["clear_errors"] + found["cut_off"] + found["harmless"] == found["files"] == 400
    assert found["memory_mb"] < 48  # nested lists of 4,095 items take the most, 34


def test_bombs_do_not_unpack(tmp_path: pathlib.Path) -> None:
    bomb = zlib.compress(bytes(1 << 29), 9)
    packed = ["float32", [3_200], [bomb]]
    for claim, message in (
        (packed, "bytes that do not make float32"),
        (["float32", [1 << 40], [bomb]], "wanted at most"),
        (["float32", [-1], [bomb]], "sizes of at least 0"),
        (["float32", [3_200], [zlib.compress(bytes(12_799))]], "do not make"),
        (["float32", [1], [zlib.compress(bytes(4)) + b"x"]], "do not make"),
        (["float32", [1], [b"no zlib"]], "damaged"),
        (["object", [1], []], "got dtype 'object'"),
        (["bool", [1], [zlib.compress(b"\2")]], "do not make bool"),
        ([["float32"], [1], []], "wanted str"),
    ):

        def unpack(claim: list = claim, message: str = message) -> None:
            with pytest.raises(ValueError, match=message):
                session_file.unpack_array(claim, "a.session: audio")

        assert memory_mb(unpack) < 2
    fields = {"version": session_file.VERSION, "audio": packed}
    session_file.write_file(tmp_path / "a", b"convers1", fields)
    got = session_file.read_file(tmp_path / "a", b"convers1")
    assert got["audio"][2] == [bomb]
    with pytest.raises(ValueError, match=r"a: at byte 8: got fields .*wanted also 'seed'"):
        got["seed"]


@pytest.mark.parametrize("kind", [bool, np.int32, np.float32, ml_dtypes.bfloat16, np.uint8])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_arrays_come_back_in_pieces(
    monkeypatch: pytest.MonkeyPatch, kind: type, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(session_file, "_PIECE", 10)
    array = (np.random.default_rng(0).uniform(0, 9, shape) > 4).astype(kind)
    packed = session_file.pack_array(array)
    assert len(packed[2]) == -(-array.nbytes // 10)
    got = session_file.unpack_array(packed)
    assert got.dtype == array.dtype and got.shape == shape and got.tobytes() == array.tobytes()


def test_a_state_fits_its_model_and_is_finite() -> None:
    like = {"clock": jnp.zeros(1, jnp.uint32), "ring": jnp.zeros((1, 3), jnp.bfloat16)}
    state = {"clock": jnp.ones(1, jnp.uint32), "ring": jnp.arange(3.0)[None].astype(jnp.bfloat16)}
    packed = session_file.pack_state(state)
    got = session_file.unpack_state(packed, like, "a")
    assert all(np.array_equal(got[name], state[name]) for name in state)
    bad = session_file.pack_array(np.array([[0, np.nan, 1]], ml_dtypes.bfloat16))
    for change, message in (
        ({"ring": bad}, "a: state ring: got NaN"),
        ({"ring": packed["clock"]}, r"ring is uint32\[1\], wanted bfloat16\[1, 3\]"),
        ({"other": packed["clock"]}, "other is unknown"),
        ({"ring": ["bfloat16", [1, 3], []]}, "a: state ring: got bytes that do not make"),
        ({"ring": None}, "a: state ring: got None"),
    ):
        with pytest.raises(ValueError, match=message):
            session_file.unpack_state(packed | change, like, "a")


def test_values_are_checked_against_their_types() -> None:
    assert typed([1.5, 2, "text", "a"], Note, "a") == Note(1.5, 2, "text", "a")
    assert typed([4, [9]], tuple[int, list[int]] | None, "a") == (4, [9])
    assert typed(None, dict[str, Any] | None, "a") is None
    for value, kind, message in (
        ([1.5, 2, "text"], Note, "a: got list of 3, wanted Note"),
        ([1.5, True, "text", ""], Note, "a.delegation: got True, wanted int"),
        ([float("nan"), 2, "text", ""], Note, "a.time: got nan, wanted float"),
        ([1, ["x"]], tuple[int, list[int]], r"a\[1\]\[0\]: got 'x', wanted int"),
        ({"number": 1}, Delegation, "a: got dict of 1, wanted Delegation"),
        (1 << 63, int, "a: got 9223372036854775808"),
        ({1: 2}, dict[str, int], "a: got 1, wanted str"),
        ("x" * 99, int, r"a: got 'x{39}..., wanted int"),
    ):
        with pytest.raises(ValueError, match=message):
            typed(value, kind, "a")
    with pytest.raises(ValueError, match=r"a: seed: got 3, wanted 4\.\.; copy"):
        Fields({"seed": 3}, "a").take("seed", int, low=4)


def test_a_long_record_is_read_and_replayed_in_flat_memory(tmp_path: pathlib.Path) -> None:
    model = FakeModel()
    header = new_header(model, fingerprint(model.config, model.params), 3)
    for name, turns in (("short", 20), ("long", 400)):
        writer = SessionWriter(tmp_path / name, header, waiting=turns)
        for turn in range(turns):
            writer.put(entry(turn, np.full(3_200, 0.25, np.float32)))
        assert writer.close([], wait_s=60)

    def stream(name: str) -> int:
        with SessionReader(tmp_path / name) as reader:
            return sum(1 for _ in reader)

    assert stream("long") == 400
    assert memory_mb(lambda: stream("long")) < memory_mb(lambda: stream("short")) + 0.1 < 0.5
    assert memory_mb(lambda: read(tmp_path / "long")) > 8  # what would be held
    replay(tmp_path / "short", model)
    taken = memory_mb(lambda: replay(tmp_path / "long", model))
    assert taken < memory_mb(lambda: replay(tmp_path / "short", model)) + 0.3
    assert replay(tmp_path / "long", model).turns == 400


def test_a_record_of_other_shapes_is_named_in_a_replay(tmp_path: pathlib.Path) -> None:
    model = FakeModel()
    header = new_header(model, fingerprint(model.config, model.params), 3)
    for name, one, message in (
        ("a", entry(0, SILENCE[:1]), "a: micro-turn 0: audio: got"),
        ("b", entry(0, SILENCE + 9), r"b: micro-turn 0: audio: got NaN or values outside"),
        ("c", entry(0, arrived=np.zeros(1, np.int32)), "c: micro-turn 0: arrived: got int32"),
        ("d", entry(0, frame=np.zeros((1, 1, 3), np.float32)), "d: micro-turn 0: frame: got"),
    ):
        writer = SessionWriter(tmp_path / name, header)
        writer.put(one)
        assert writer.close([], wait_s=60)
        with pytest.raises(ValueError, match=message):
            replay(tmp_path / name, model)


def test_what_is_not_finite_is_refused(tmp_path: pathlib.Path) -> None:
    written(tmp_path / "a", [entry(0)._replace(speech=SILENCE + np.float32(np.nan))])
    with pytest.raises(ValueError, match=r"a: at byte \d+: speech: got NaN"):
        read(tmp_path / "a")
    writer = SessionWriter(tmp_path / "b", HEADER._replace(time=float("nan")))
    assert writer.close([], wait_s=60)
    with pytest.raises(ValueError, match="b: at byte 8: time: got nan, wanted float"):
        read(tmp_path / "b")
