"""Slices of accelerators by their names at cloud providers."""

import math
import re
from typing import NamedTuple

from pallas_kernels.chips import CHIPS, Chip, TpuChip


class Slice(NamedTuple):
    """Some chips of one kind."""

    name: str  # "v5p-64" or "v5p:2x4x4"
    chip: Chip
    chips: int  # number of chips
    shape: str  # chips along each dimension of a TPU's network, "2x4x4"; "" if none is standard

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices

    @property
    def hbm_bytes(self) -> int:
        """Bytes of HBM."""
        return self.chips * self.chip.hbm_bytes


def find_slice(name: str) -> Slice:
    """The slice of a name.

    Args:
      name: A chip and a size, "v5p-64" or "h200-8" (v4, v5p and tpu7x count TensorCores, two per
        chip; the others count chips), or a TPU and a shape, "v5p:4x4x2".

    Raises:
      ValueError: The chip, size or shape is unknown.
    """
    kind, _, rest = name.replace("-", ":", 1).partition(":")
    chip = CHIPS.get(kind)
    if chip is None:
        raise ValueError(
            f"slice: got {name!r}, wanted one of {', '.join(CHIPS)} with a size or a shape, such "
            "as v5p-64 or v5p:2x4x4; correct the name"
        )
    standard = dict(chip.slices) if isinstance(chip, TpuChip) else {}
    if standard and re.fullmatch("x".join([r"[1-9]\d*"] * len(standard[4].split("x"))), rest):
        return Slice(name, chip, math.prod(int(size) for size in rest.split("x")), rest)
    size = int(rest) if rest.isdecimal() else 0
    if size < 1 or size % chip.slice_units:
        counted = "TensorCores, two a chip" if chip.slice_units > 1 else "chips"
        raise ValueError(
            f"slice: got {name!r}, wanted {kind}-N with N {counted}, "
            f"{f'or {kind}:{standard[4]}' if standard else 'at least 1'}; correct the name"
        )
    chips = size // chip.slice_units
    return Slice(name, chip, chips, standard.get(chips, ""))
