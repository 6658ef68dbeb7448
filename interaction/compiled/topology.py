"""TPU slices by their names at cloud providers, described by libtpu on machines without a TPU."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

# Number of chips -> shape of the standard slice; three- and two-dimensional networks.
_TORUS = {
    1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
    256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip
_GRID = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip


class _Generation(NamedTuple):
    shapes: Mapping[int, str]
    counted: int  # count of a chip in the number of a slice's name: cores, or 1 for the chip
    devices: int  # JAX devices in a chip


_GENERATIONS = {
    "v4": _Generation(_TORUS, 2, 1),
    "v5e": _Generation(_GRID, 1, 1),
    "v5p": _Generation(_TORUS, 2, 1),
    "v6e": _Generation(_GRID, 1, 1),
    "tpu7x": _Generation(_TORUS, 2, 2),
}


class Slice(NamedTuple):
    """A TPU slice by name."""

    chip: str  # generation, "v5p"
    shape: str  # chips along each dimension, "2x4x4"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(int(size) for size in self.shape.split("x"))

    @property
    def devices_per_chip(self) -> int:
        """Number of JAX devices that share a chip and its HBM."""
        return _GENERATIONS[self.chip].devices

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.devices_per_chip


def find_slice(name: str) -> Slice:
    """The slice of a name.

    Args:
      name: Name of an accelerator, "v5p-64" (v4, v5p and tpu7x count cores, two per chip; v5e and
        v6e count chips), or a generation and a shape, "v5p:4x4x2".

    Raises:
      ValueError: The generation, size or shape is unknown.
    """
    chip, _, rest = name.replace("-", ":", 1).partition(":")
    generation = _GENERATIONS.get(chip)
    if generation is None:
        raise ValueError(
            f"topology: got {name!r}, wanted one of {', '.join(_GENERATIONS)} with a size or a "
            "shape, such as v5p-64 or v5p:2x4x4; correct the name"
        )
    dimensions = len(generation.shapes[1].split("x"))
    if re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), rest):
        return Slice(chip, rest)
    sizes = {f"{n * generation.counted}": shape for n, shape in generation.shapes.items()}
    if rest not in sizes:
        counted = "cores" if generation.counted > 1 else "chips"
        raise ValueError(
            f"topology: got {name!r}, wanted {chip}-N with N {counted} among {', '.join(sizes)}, "
            f"or {chip}:{generation.shapes[4]}; correct the name"
        )
    return Slice(chip, sizes[rest])


def use_libtpu() -> None:
    """Lets libtpu load on a machine without a TPU; does not overwrite environment variables."""
    for name, value in {
        # Without these libtpu queries the cloud's metadata, or waits for another process.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }.items():
        os.environ.setdefault(name, value)
    # libtpu only compiles; programs run on the CPU.
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def topology(name: str) -> topologies.TopologyDescription:
    """Devices of a TPU slice to compile for, see `find_slice`.

    Raises:
      ValueError: The slice is unknown.
      RuntimeError: libtpu is not installed.
    """
    found = find_slice(name)
    use_libtpu()
    options: dict[str, Any] = {}
    if found.chips == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    if found.chip == "v4":
        options["chip_config_name"] = "megacore"  # both cores are one device
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{found.chip}:{found.shape}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise RuntimeError(
                f"topology: libtpu does not load ({error}); install it: pip install jax[tpu]"
            ) from error
        raise ValueError(
            f"topology: got {name!r}, which libtpu does not know ({error}); choose another shape"
        ) from error
