"""The TPU that a kernel is traced for."""

import dataclasses

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.implementation import platform


@dataclasses.dataclass(frozen=True)
class TpuTarget:
    """Properties of a TPU that the block sizes of a kernel depend on."""

    name: str
    generation: int
    vmem_bytes: int  # of one core
    cores: int  # TensorCores of one JAX device


# Interpreted kernels use the block sizes of the smallest VMEM.
_INTERPRETED = TpuTarget("the interpreter", 7, 16 << 20, 2)


def tpu_target() -> TpuTarget:
    """The TPU of the mesh in context or of the default backend.

    On other platforms, where kernels are interpreted, a TPU with a small VMEM.
    """
    if platform() != "tpu":
        return _INTERPRETED
    info = pltpu.get_tpu_info()
    return TpuTarget(
        f"TPU {info.chip_version.value}", info.generation, info.vmem_capacity_bytes, info.num_cores
    )
