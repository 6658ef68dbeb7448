"""Consensus of the processes of one run, one process per host.

Each process has its own clock and receives its own signals. If one process saved or stopped at a
step at which another continues, both would wait for each other for ever, so they decide together.
With one process nothing is sent.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_MOST = 64  # most numbers that `from_first` sends


def is_first() -> bool:
    """Whether this is the process that writes figures, config and progress."""
    return jax.process_index() == 0


def check_mesh(mesh: Mesh) -> None:
    """Refuses a mesh that leaves out a process.

    Raises:
      ValueError: The mesh has no device of some process.
    """
    found = {device.process_index for device in mesh.devices.flat}
    if len(found) != jax.process_count():
        raise ValueError(
            f"mesh: got {mesh.size} devices, of {len(found)} of the {jax.process_count()} "
            f"processes, wanted all {jax.device_count()} devices; change train.mesh"
        )


def all_agree(yes: bool) -> bool:
    """Whether every process passes True; waits for all of them."""
    if jax.process_count() == 1:
        return yes
    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def from_first(numbers: Sequence[int]) -> list[int]:
    """Sends numbers of the first process to all processes: at most 64, none negative."""
    padded = np.full(_MOST, -1, np.int32)
    padded[: len(numbers)] = numbers[:_MOST]
    return [int(number) for number in multihost_utils.broadcast_one_to_all(padded) if number >= 0]


class Consensus:
    """Tells once a step whether any process wants something, without waiting for the step.

    With several processes a call returns the result of the call before, which is complete by then.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Uses the devices of `mesh`; they exchange the flags in turn with their steps."""
        flat = Mesh(mesh.devices.flatten(), ("device",))
        self._split = NamedSharding(flat, PartitionSpec("device"))
        whole = NamedSharding(flat, PartitionSpec())
        self._any = jax.jit(lambda flags: jnp.max(flags, axis=0), out_shardings=whole)
        self._pending: jax.Array | None = None

    def __call__(self, *mine: bool) -> tuple[bool, ...]:
        """For each flag, whether some process set it.

        Args:
          *mine: Flags of this process; every process passes the same number of them.
        """
        if jax.process_count() == 1:
            return mine
        row = np.array([mine], np.int32)
        shape = (self._split.mesh.size, len(mine))
        flags = jax.make_array_from_callback(shape, self._split, lambda _: row)
        known, self._pending = self._pending, self._any(flags)
        return (False,) * len(mine) if known is None else tuple(map(bool, np.asarray(known)))
