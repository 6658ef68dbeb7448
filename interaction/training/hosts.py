"""What the processes of one run, a process a host, have to decide alike.

Each has its own clock and gets its own signals. Were one to save or stop at a step at which another
goes on, both would wait for each other for ever; so they vote. With one process nothing is sent.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_MOST = 64  # numbers that `from_first` sends


def is_first() -> bool:
    """Whether this process writes what is written once: figures, config, progress."""
    return jax.process_index() == 0


def check_mesh(mesh: Mesh) -> None:
    """Refuses a mesh on which some process would have nothing to do.

    Raises:
      ValueError: It has no device of some process.
    """
    found = {device.process_index for device in mesh.devices.flat}
    if len(found) != jax.process_count():
        raise ValueError(
            f"mesh: got {mesh.size} devices, of {len(found)} of the {jax.process_count()} "
            f"processes, wanted all {jax.device_count()} devices; change train.mesh"
        )


def all_agree(yes: bool) -> bool:
    """Whether every process says yes; waits for all of them."""
    if jax.process_count() == 1:
        return yes
    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def from_first(numbers: Sequence[int]) -> list[int]:
    """The first process's numbers, none of them negative, on all processes; at most 64."""
    padded = np.full(_MOST, -1, np.int32)
    padded[: len(numbers)] = numbers[:_MOST]
    return [int(number) for number in multihost_utils.broadcast_one_to_all(padded) if number >= 0]


class Consensus:
    """Asks once a step, without waiting for the step: whether any process wants something.

    With several processes the answer is that of the call before, which is known by now.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Votes travel between the devices of `mesh`, in turn with its steps."""
        flat = Mesh(mesh.devices.flatten(), ("device",))
        self._split = NamedSharding(flat, PartitionSpec("device"))
        whole = NamedSharding(flat, PartitionSpec())
        self._most = jax.jit(lambda votes: jnp.max(votes, axis=0), out_shardings=whole)
        self._pending: jax.Array | None = None

    def __call__(self, *mine: bool) -> tuple[bool, ...]:
        """For each question, whether some process answered it with yes."""
        if jax.process_count() == 1:
            return mine
        answers = np.array([mine], np.int32)
        shape = (self._split.mesh.size, len(mine))
        votes = jax.make_array_from_callback(shape, self._split, lambda _: answers)
        known, self._pending = self._pending, self._most(votes)
        return (False,) * len(mine) if known is None else tuple(map(bool, np.asarray(known)))
