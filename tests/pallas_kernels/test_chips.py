"""The table of chips against closed forms, and its figures per JAX device."""

import math

import pytest

from pallas_kernels.chips import CHIPS, TPUS, TpuChip, chip_of_kind


@pytest.mark.parametrize(("name", "matrix_units"), [("v4", 8), ("v5e", 4), ("v5p", 8)])
def test_flops_are_those_of_the_matrix_units(name: str, matrix_units: int) -> None:
    """A unit of 128 x 128 does a multiplication and an addition per cell and cycle."""
    chip = TPUS[name]
    flops_per_s = matrix_units * 128 * 128 * 2 * chip.clock_hz
    assert flops_per_s == pytest.approx(chip.flops_per_s, rel=2e-3)  # vendors round: 1e-3


def test_a_tpu7x_chip_is_two_devices() -> None:
    chip = TPUS["tpu7x"]
    assert (chip.devices, chip.device_cores) == (2, 1)
    assert chip.device_flops_per_s == 1153.5e12
    assert chip.device_hbm_bytes_per_s == 3.69e12
    assert chip.device_hbm_bytes == 96 << 30


@pytest.mark.parametrize("name", sorted(set(CHIPS) - {"tpu7x"}))
def test_other_chips_are_one_device(name: str) -> None:
    chip = CHIPS[name]
    assert chip.devices == 1
    assert chip.device_flops_per_s == chip.flops_per_s
    assert chip.device_hbm_bytes_per_s == chip.hbm_bytes_per_s
    assert chip.device_hbm_bytes == chip.hbm_bytes


@pytest.mark.parametrize("chip", TPUS.values(), ids=list(TPUS))
def test_shapes_have_as_many_chips_as_their_slices(chip: TpuChip) -> None:
    for chips, shape in chip.slices.items():
        assert math.prod(int(size) for size in shape.split("x")) == chips
    dimensions = {len(shape.split("x")) for shape in chip.slices.values()}
    assert dimensions == {2 if chip.name in ("v5e", "v6e") else 3}


def test_topologies_and_slice_units() -> None:
    topologies = {name: chip.topology for name, chip in TPUS.items()}
    assert topologies == {
        "v4": "v4:2x2x1",
        "v5e": "v5e:2x2",
        "v5p": "v5p:2x2x1",
        "v6e": "v6e:2x2",
        "tpu7x": "tpu7x:2x2x1",
    }
    units = {name: chip.slice_units for name, chip in CHIPS.items()}
    assert units == {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1, "tpu7x": 2, "h100": 1, "h200": 1}


def test_chips_are_found_by_the_kind_of_their_devices() -> None:
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
    for kind, name in {"TPU v5 lite": "v5e", "TPU v5": "v5p", "NVIDIA H200": "h200"}.items():
        assert chip_of_kind(kind) is CHIPS[name]
    assert chip_of_kind("cpu") is None
