"""Checkpoints that are damaged, incomplete or non-finite."""

import json
import logging
import pathlib
import random
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.distributed.sharding import make_mesh, shardings
from interaction.training import checkpoints
from interaction.training.checkpoints import Checkpoints, load_part
from interaction.training.finite import NotFiniteError
from interaction.training.input_pipeline import InputPipeline, make_input_pipeline
from interaction.training.state import TrainState
from tests.training import toy

Damage = Callable[[pathlib.Path], object]


def _state(value: float) -> TrainState:
    """A state of 2 MB: Orbax stores small arrays with a checksum, large ones without."""
    noise = value + jax.random.normal(jax.random.key(0), (512, 512))
    params = {"vocoder": {"w": noise, "b": jnp.full(4, value)}}
    return TrainState(jnp.int32(value), params, {"router_bias": noise[:2, :4]}, (), params)


def _abstract(state: TrainState, **axes: int) -> TrainState:
    where = shardings(make_mesh(axes, jax.devices()[: max([1, *axes.values()])]), state)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        where,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy.write_sessions(tmp_path_factory.mktemp("data")))


def _pipeline(data: str, batches: int) -> InputPipeline:
    pipeline = make_input_pipeline(data, 4, 0)
    for _ in range(batches):
        next(pipeline.batches)
    return pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, data: str) -> pathlib.Path:
    """A run's folder with checkpoints of steps 1 and 2."""
    run = tmp_path_factory.mktemp("saved") / "run"
    writer = Checkpoints(str(run), 2)
    for step in (1, 2):
        writer.save(step, _state(step), _pipeline(data, step).state())
    writer.close()
    return run


def _files(place: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    found = [path for path in place.glob(pattern) if path.is_file()]
    assert found, pattern
    return found


def _cut(pattern: str) -> Damage:
    def damage(place: pathlib.Path) -> None:
        for path in _files(place, pattern):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _zero(pattern: str) -> Damage:
    def damage(place: pathlib.Path) -> None:
        for path in _files(place, pattern):
            path.write_bytes(bytes(path.stat().st_size))

    return damage


def _delete(pattern: str) -> Damage:
    return lambda place: [path.unlink() for path in _files(place, pattern)]


def _flip_bit(place: pathlib.Path, seed: int = 0) -> None:
    """Flips a bit in one of the two large arrays."""
    rng = random.Random(seed)
    path = rng.choice([path for path in _files(place, "state/**/d/*") if path.stat().st_size > 1e5])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _swap_state(place: pathlib.Path) -> None:
    shutil.rmtree(place / "state")
    shutil.copytree(place.parent / "1/state", place / "state")


def _edit_position(place: pathlib.Path) -> None:
    path = place / "pipeline/metadata"
    fields = json.loads(path.read_text())
    fields["position"]["next_index"] += 1
    path.write_text(json.dumps(fields))


def _empty(place: pathlib.Path) -> None:
    shutil.rmtree(place)
    place.mkdir()


DAMAGES: dict[str, Damage] = {
    "arrays cut": _cut("state/**/d/*"),
    "arrays zeroed": _zero("state/**/d/*"),
    "arrays deleted": _delete("state/**/d/*"),
    "one bit of an array": _flip_bit,
    "arrays of another step": _swap_state,
    "list of arrays cut": _cut("state/_METADATA"),
    "list of arrays deleted": _delete("state/_METADATA"),
    "manifest zeroed": _zero("state/manifest.ocdbt"),
    "manifest deleted": _delete("state/manifest.ocdbt"),
    "position cut": _cut("pipeline/metadata"),
    "position changed": _edit_position,
    "position deleted": _delete("pipeline/metadata"),
    "commit marker zeroed": _zero("_CHECKPOINT_METADATA"),
    "commit marker deleted": _delete("_CHECKPOINT_METADATA"),
    "folder empty": _empty,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    saved: pathlib.Path,
    data: str,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    DAMAGES[name](run / "checkpoints/2")
    reader, pipeline = Checkpoints(str(run), 2), _pipeline(data, 0)
    with caplog.at_level(logging.WARNING):
        step, state = reader.restore(_abstract(_state(0)), pipeline)
    assert step == 1
    assert toy.digest(state) == toy.digest(_state(1))
    assert pipeline.state() == _pipeline(data, 1).state()
    assert f"{run}/checkpoints/2: got a checkpoint that is damaged" in caplog.text
    assert (run / "damaged/2").is_dir()
    reader.save(2, _state(2), _pipeline(data, 2).state())
    reader.close()
    caplog.clear()
    step, state = Checkpoints(str(run), 2).restore(_abstract(_state(0)), pipeline)
    # asyncio may report Orbax's failed tasks only now.
    ours = [entry for entry in caplog.records if entry.name.startswith("interaction")]
    assert (step, ours) == (2, [])
    assert toy.digest(state) == toy.digest(_state(2))


@pytest.mark.parametrize("seed", range(10))
def test_every_flipped_bit_is_found(
    saved: pathlib.Path, data: str, tmp_path: pathlib.Path, seed: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    _flip_bit(run / "checkpoints/2", seed)
    assert Checkpoints(str(run), 2).restore(_abstract(_state(0)), _pipeline(data, 0))[0] == 1


def test_a_half_written_checkpoint_is_ignored(
    saved: pathlib.Path, data: str, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    shutil.copytree(run / "checkpoints/2", run / "checkpoints/3.orbax-checkpoint-tmp")
    writer = Checkpoints(str(run), 2)
    assert writer.restore(_abstract(_state(0)), _pipeline(data, 0))[0] == 2
    writer.save(3, _state(3), _pipeline(data, 3).state())
    writer.close()
    assert sorted(place.name for place in (run / "checkpoints").iterdir()) == ["2", "3"]


def test_if_all_are_damaged_the_error_names_all(
    saved: pathlib.Path, data: str, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    for step in (1, 2):
        _zero("state/**/d/*")(run / f"checkpoints/{step}")
    with pytest.raises(ValueError, match=r"every checkpoint is damaged: .*/2: got.*/1: got"):
        Checkpoints(str(run), 2).restore(_abstract(_state(0)), _pipeline(data, 0))
    assert (run / "checkpoints/2").is_dir()
    with pytest.raises(ValueError, match=r"checkpoints/2: .* damaged"):
        load_part(str(run), "vocoder")


def test_a_checkpoint_without_fingerprints_is_read(
    saved: pathlib.Path, data: str, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    path = run / "checkpoints/2/pipeline/metadata"
    fields = json.loads(path.read_text())
    del fields["leaves"], fields["sha256"], fields["format_version"]
    path.write_text(json.dumps(fields))
    step, state = Checkpoints(str(run), 2).restore(_abstract(_state(0)), _pipeline(data, 0))
    assert step == 2
    assert toy.digest(state) == toy.digest(_state(2))


def test_a_checkpoint_of_another_version_stops_the_run(
    saved: pathlib.Path, data: str, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    path = run / "checkpoints/2/pipeline/metadata"
    fields = json.loads(path.read_text())
    assert fields["format_version"] == 1
    path.write_text(json.dumps(fields | {"format_version": 2}))
    match = r"checkpoints/2: format_version: got 2, wanted 1; go on with the release"
    with pytest.raises(ValueError, match=match):
        Checkpoints(str(run), 2).restore(_abstract(_state(0)), _pipeline(data, 0))
    with pytest.raises(ValueError, match=match):
        load_part(str(run), "vocoder")
    assert not (run / "damaged").exists()


def test_a_part_is_read_piece_by_piece(data: str, tmp_path: pathlib.Path) -> None:
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    state = _state(3)
    params = {"backbone": {"heads": {"text": state.params["vocoder"]["w"]}}}
    params = jax.device_put(params, shardings(mesh, params))
    writer = Checkpoints(str(tmp_path), 1)
    writer.save(3, TrainState(jnp.int32(3), {}, {}, (), params), _pipeline(data, 1).state())
    writer.close()
    found, place = load_part(str(tmp_path), "backbone/heads")
    assert place == str(tmp_path / "checkpoints/3")
    leaf = found["backbone/heads/text"]
    assert [leaf[index].shape for index in leaf.pieces()] == 8 * [(256, 128)]
    np.testing.assert_array_equal(leaf, state.params["vocoder"]["w"])
    _flip_bit(tmp_path / "checkpoints/3")
    with pytest.raises(ValueError, match=r"checkpoints/3: .* damaged"):
        load_part(str(tmp_path), "backbone/heads")


@pytest.mark.parametrize("axes", [{"data": 4}, {"tensor": 2, "fsdp": 2, "expert": 2}])
def test_any_mesh_reads_a_checkpoint(saved: pathlib.Path, data: str, axes: dict[str, int]) -> None:
    state = _state(0)
    params = {"backbone": {"heads": {"text": state.params["vocoder"]["w"]}}}
    state = TrainState(jnp.int32(3), params, {}, (), params)
    folder = saved.parent / f"mesh{len(axes)}"
    writer = Checkpoints(str(folder), 1)
    writer.save(3, state, _pipeline(data, 3).state())
    writer.close()
    mesh = make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        shardings(mesh, state),
    )
    _, found = Checkpoints(str(folder), 1).restore(target, _pipeline(data, 0))
    assert found.params["backbone"]["heads"]["text"].sharding.mesh == mesh
    assert toy.digest(found) == toy.digest(state)
    again = Checkpoints(str(folder), 1)  # written from that mesh, read onto one device
    again.restore(target, _pipeline(data, 0))
    again.save(4, found, _pipeline(data, 4).state())
    again.close()
    _, back = Checkpoints(str(folder), 1).restore(_abstract(state), _pipeline(data, 0))
    assert toy.digest(back) == toy.digest(state)


def test_a_non_finite_state_is_not_saved(data: str, tmp_path: pathlib.Path) -> None:
    state = _state(1)
    bad = state._replace(ema={"vocoder": {**state.ema["vocoder"], "b": jnp.full(4, jnp.inf)}})
    writer = Checkpoints(str(tmp_path), 2)
    writer.save(1, state, _pipeline(data, 1).state())
    with pytest.raises(NotFiniteError, match=r"step 2: not finite: in the state ema/vocoder/b"):
        writer.save(2, bad, _pipeline(data, 2).state())
    writer.close()
    assert [place.name for place in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_fingerprints_tell_values_and_places_apart() -> None:
    one = jnp.arange(6.0).reshape(2, 3)
    found = checkpoints.fingerprints(
        {
            "one": one,
            "swapped": one[::-1],
            "signs": one.at[0, 1].multiply(-1).at[1, 1].multiply(-1),
            "bits": one.astype(jnp.bfloat16),
            "flags": one > 2,
        }
    )
    assert len({leaf["fingerprint"] for leaf in found.values()}) == len(found)
    assert checkpoints.fingerprints({"one": np.asarray(one)})["one"] == found["one"]
