"""The TPU that a kernel is traced for."""

import dataclasses

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.implementation import platform


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the choice of a kernel's blocks depends on."""

    name: str
    generation: int
    vmem_bytes: int  # of one core
    cores: int  # that share a JAX device


# Kernels that are interpreted are cut as for the smallest chip.
_INTERPRETED = Chip("the interpreter", 7, 16 << 20, 2)


def chip() -> Chip:
    """The chip of the mesh in context or of the default backend; a small one on other platforms."""
    if platform() != "tpu":
        return _INTERPRETED
    info = pltpu.get_tpu_info()
    return Chip(
        f"TPU {info.chip_version.value}", info.generation, info.vmem_capacity_bytes, info.num_cores
    )
