"""Eight devices give the result of one device; `experiments.check_mesh` runs all 35 meshes."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from experiments import check_mesh
from interaction.distributed import sharding
from interaction.distributed.collectives import AXES
from interaction.types import Chunk


def _reference(dense_layers: int) -> check_mesh.Reference:
    """Two layers of the command's four: they are separate with a dense one, otherwise in a scan."""
    model = check_mesh.small_model()
    sizes = {"layers": 2, "dense_layers": dense_layers}
    transformer = dataclasses.replace(model.decoder, **sizes)
    return check_mesh.Reference(dataclasses.replace(model, transformer=transformer))


@pytest.fixture(scope="module")
def reference() -> check_mesh.Reference:
    return _reference(dense_layers=1)


@pytest.fixture(scope="module")
def scanned() -> check_mesh.Reference:
    return _reference(dense_layers=0)


@pytest.mark.parametrize(
    ("layers", "axes", "accumulate"),
    [
        ("reference", {"fsdp": 2, "expert": 2, "tensor": 2}, 1),
        ("scanned", {"data": 2, "sequence": 2, "expert": 2}, 2),
    ],
)
def test_a_mesh_equals_one_device(
    layers: str, axes: dict[str, int], accumulate: int, request: pytest.FixtureRequest
) -> None:
    """Measured over all meshes: see `experiments.check_mesh`."""
    found = request.getfixturevalue(layers).differences(axes, accumulate)
    for name, most in check_mesh.TARGETS.items():
        assert found[name] <= most, found


def test_a_session_on_each_device_steps_as_on_one(reference: check_mesh.Reference) -> None:
    mesh = sharding.make_mesh({"expert": 8})
    pcm, tokens = check_mesh.stream_on(mesh, reference.model, reference.params)
    assert np.max(np.abs(pcm - reference.streamed[0])) <= check_mesh.TARGETS["replies"]
    np.testing.assert_array_equal(tokens, reference.streamed[1])


def test_devices_whose_sessions_are_silent_do_not_wait(reference: check_mesh.Reference) -> None:
    """Silent rows skip the flow head, so no collective may run in it."""
    model = reference.model
    active = np.array([True, False])
    audio = np.random.default_rng(1).normal(0, 0.1, (2, model.audio.turn_samples))
    found = []
    for axes in ({}, {"fsdp": 2}):
        mesh = Mesh(np.reshape(jax.devices()[: 1 + len(axes)], sharding.mesh_shape(axes)), AXES)
        step, params, state = check_mesh.prepare_stream(mesh, model, reference.params, sessions=2)
        _, reply = step(params, state, Chunk(audio.astype(np.float32), active=active))
        found.append(jax.device_get(reply))
    np.testing.assert_array_equal(found[0].text, found[1].text)
    np.testing.assert_allclose(found[0].audio, found[1].audio, atol=1e-5)  # measured: equal
    assert np.any(found[1].audio[0]), "the session of one device has to speak"
    assert not np.any(found[1].audio[1])


def test_there_are_35_meshes_of_eight_devices() -> None:
    assert len(list(check_mesh.meshes())) == 35
    assert all(np.prod(list(axes.values())) == 8 for axes in check_mesh.meshes())


def test_a_difference_is_seen() -> None:
    right = {"a": np.array([1.0, -2.0]), "b": np.zeros(2)}
    assert check_mesh.largest(right, right) == 0
    assert check_mesh.largest({**right, "a": np.array([1.0, -1.5])}, right) == 0.25
    assert check_mesh.largest({**right, "b": np.array([0.0, 1e-9])}, right) > 1
    assert np.isnan(check_mesh.largest({**right, "b": np.full(2, np.nan)}, right))


def test_every_path_has_one_rule() -> None:
    assert sharding.rule("opt_state/1/mu/backbone/sliding/gate") == (
        ("expert", "tensor"),
        "fsdp",
        None,
    )
    assert sharding.rule("backbone/sliding/3/1/query") == ("fsdp", "tensor")
    with pytest.raises(ValueError, match=r"'backbone/sliding/gates' matches 0 rules"):
        sharding.rule("backbone/sliding/gates")


def test_stacked_layers_are_whole() -> None:
    tree = {"backbone": {"sliding": {"gate": jax.ShapeDtypeStruct((2, 5, 8, 16, 32), np.float32)}}}
    specs = sharding.param_specs(tree)
    assert specs["backbone"]["sliding"]["gate"] == P(None, None, ("expert", "tensor"), "fsdp", None)


def test_what_a_mesh_does_not_divide_is_named() -> None:
    mesh = sharding.abstract_mesh({"fsdp": 3})
    tree = {"heads": {"text": jax.ShapeDtypeStruct((16, 32), np.float32)}}
    with pytest.raises(ValueError, match=r"heads/text\[16, 32\].* multiple of the 3 devices"):
        sharding.shardings(mesh, tree)


@pytest.mark.parametrize("axes", [{"model": 2}, {"data": 0}])
def test_bad_axes_are_refused(axes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="mesh: got"):
        sharding.make_mesh(axes)


def test_another_number_of_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="of 4 devices, wanted the 8"):
        sharding.make_mesh({"data": 4})
