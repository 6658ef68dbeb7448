"""Vendor figures of TPUs and GPUs, and the names that JAX and libtpu use for them.

Figures are per chip. A chip may be several JAX devices: a TPU7x chip is two, each with one
TensorCore and half of the chip's HBM, HBM bandwidth and FLOP/s. Properties that begin with
`device_` give figures per JAX device.

Sources: FLOP/s, HBM and TensorCores of TPUs, https://docs.cloud.google.com/tpu/docs/v4 (and v5e,
v5p, v6e, tpu7x); clock of v4, arXiv:2304.01433; GPUs, NVIDIA's data sheets of H100 SXM and H200 SXM
(FLOP/s without sparsity). The DMA granule is that of libtpu's schedules.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of one chip."""

    name: str  # "v5p", the beginning of slice names such as "v5p-64"
    kinds: tuple[str, ...]  # values of `jax.Device.device_kind`
    flops_per_s: float  # dense bfloat16 FLOP/s
    hbm_bytes_per_s: float
    hbm_bytes: int  # capacity
    devices: int = 1  # JAX devices of a chip

    @property
    def slice_units(self) -> int:
        """Units of a chip that the number in a slice's name counts: "h200-8" is 8 GPUs."""
        return 1

    @property
    def device_flops_per_s(self) -> float:
        """Dense bfloat16 FLOP/s of one JAX device."""
        return self.flops_per_s / self.devices

    @property
    def device_hbm_bytes_per_s(self) -> float:
        """HBM bandwidth of one JAX device."""
        return self.hbm_bytes_per_s / self.devices

    @property
    def device_hbm_bytes(self) -> int:
        """HBM capacity of one JAX device."""
        return self.hbm_bytes // self.devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuChip(Chip):
    """Figures of one TPU chip."""

    clock_hz: float  # of the TensorCores; a schedule's cycles / clock_hz is its time
    cores: int  # TensorCores of a chip
    slices: Mapping[int, str]  # number of chips -> shape of the standard slice, "2x2x1"
    dma_granule: int = 32  # bytes, in which libtpu's schedules count transfers

    @property
    def slice_units(self) -> int:
        """TensorCores of a chip: "v5p-64" is 32 chips, "v6e-64" is 64."""
        return self.cores

    @property
    def device_cores(self) -> int:
        """TensorCores of one JAX device."""
        return self.cores // self.devices

    @property
    def topology(self) -> str:
        """Topology of four chips, the smallest that libtpu has without options: "v5p:2x2x1"."""
        return f"{self.name}:{self.slices[4]}"


# Standard slices of TPUs whose chips are connected as a three-dimensional torus.
_TORUS = {
    1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
    256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip
# Standard slices of TPUs whose chips are connected in two dimensions.
_GRID = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip

# Name -> chip.
TPUS: dict[str, TpuChip] = {
    chip.name: chip
    for chip in (
        TpuChip(
            name="v4",
            kinds=("TPU v4",),
            flops_per_s=275e12,
            hbm_bytes_per_s=1.23e12,
            hbm_bytes=32 << 30,
            clock_hz=1.05e9,
            cores=2,
            slices=_TORUS,
            dma_granule=512,
        ),
        TpuChip(
            name="v5e",
            kinds=("TPU v5 lite", "TPU v5e"),
            flops_per_s=197e12,
            hbm_bytes_per_s=0.82e12,
            hbm_bytes=16 << 30,
            clock_hz=1.5e9,
            cores=1,
            slices=_GRID,
        ),
        TpuChip(
            name="v5p",
            kinds=("TPU v5", "TPU v5p"),
            flops_per_s=459e12,
            hbm_bytes_per_s=2.77e12,
            hbm_bytes=95 << 30,
            clock_hz=1.75e9,
            cores=2,
            slices=_TORUS,
        ),
        TpuChip(
            name="v6e",
            kinds=("TPU v6 lite", "TPU v6e"),
            flops_per_s=918e12,
            hbm_bytes_per_s=1.64e12,
            hbm_bytes=32 << 30,
            clock_hz=1.75e9,
            cores=1,
            slices=_GRID,
        ),
        TpuChip(
            name="tpu7x",
            kinds=("TPU7x",),
            flops_per_s=2_307e12,
            hbm_bytes_per_s=7.38e12,
            hbm_bytes=192 << 30,
            devices=2,
            clock_hz=1.9e9,
            cores=2,
            slices=_TORUS,
        ),
    )
}
CHIPS: dict[str, Chip] = TPUS | {
    chip.name: chip
    for chip in (
        Chip(
            name="h100",
            kinds=("NVIDIA H100 80GB HBM3",),
            flops_per_s=989e12,
            hbm_bytes_per_s=3.35e12,
            hbm_bytes=80 * 10**9,
        ),
        Chip(
            name="h200",
            kinds=("NVIDIA H200",),
            flops_per_s=989e12,
            hbm_bytes_per_s=4.8e12,
            hbm_bytes=141 * 10**9,
        ),
    )
}


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None if it is not in the table."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)
