"""TPU slices as libtpu describes them on machines without a TPU, to compile programs for."""

import os
from typing import Any

import jax
from jax.experimental import topologies

from interaction.compiled.slices import find_slice
from pallas_kernels.chips import TPUS, TpuChip


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
    """Devices of a TPU slice to compile for, see `slices.find_slice`.

    Raises:
      ValueError: The slice is unknown, or has no standard shape.
      RuntimeError: libtpu is not installed.
    """
    found = find_slice(name)
    if not found.shape or not isinstance(found.chip, TpuChip):
        shapes = ", ".join(f"{kind}:{chip.slices[4]}" for kind, chip in TPUS.items())
        raise ValueError(
            f"topology: got {name!r}, without a standard shape, wanted a TPU slice that has one, "
            f"or a shape, such as {shapes}; correct the name"
        )
    use_libtpu()
    options: dict[str, Any] = {}
    if found.chips == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    if found.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores are one device
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{found.chip.name}:{found.shape}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise RuntimeError(
                f"topology: libtpu does not load ({error}); install it: pip install jax[tpu]"
            ) from error
        raise ValueError(
            f"topology: got {name!r}, which libtpu does not know ({error}); choose another shape"
        ) from error
