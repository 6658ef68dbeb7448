"""The sessions of one process, where a mesh spans several.

Sessions are split over devices, see `collectives.SESSIONS`. A process passes and receives the rows
of the sessions on its devices, in their order among all sessions. A session whose devices belong to
several processes (along `tensor` or `sequence`) is a row in each of these processes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interaction.distributed.collectives import SESSIONS
from interaction.distributed.sharding import session_sharding, size
from interaction.types import Array


class LocalRows:
    """This process's part of arrays whose leading axis counts sessions."""

    def __init__(self, mesh: Mesh) -> None:
        """Finds the process's devices on the mesh.

        Raises:
          ValueError: The mesh has no device of this process.
        """
        self._mesh = mesh
        self._where = session_sharding(mesh)
        self._shares = size(mesh, *SESSIONS)
        indices = self._where.addressable_devices_indices_map((self._shares,))
        if not indices:
            raise ValueError(
                f"mesh: got {mesh.size} devices, none of them of process {jax.process_index()}, "
                "wanted some of each process that uses the mesh; add jax.local_devices()"
            )
        held = {index[0].start or 0: device for device, index in indices.items() if index}
        self._held = sorted(held)  # indices of this process's shares of all sessions
        here = np.array([held[share] for share in self._held])
        self._here = NamedSharding(Mesh(here, ("session",)), PartitionSpec("session"))
        self.several = mesh.is_multi_process

    @property
    def shares(self) -> int:
        """Number of equal shares in which this process holds its sessions."""
        return len(self._held)

    def span(self, number: int) -> tuple[int, int]:
        """Smallest and largest of all processes' numbers (int32); waits for all processes."""
        devices = Mesh(self._mesh.devices.flatten(), ("device",))
        mine = jax.make_array_from_callback(
            (devices.size,),
            NamedSharding(devices, PartitionSpec("device")),
            lambda _: np.array([number], np.int32),
        )
        everywhere = NamedSharding(devices, PartitionSpec())
        both = jax.jit(lambda x: jnp.stack([x.min(), x.max()]), out_shardings=everywhere)(mine)
        low, high = np.asarray(both)
        return int(low), int(high)

    def total(self, rows: int) -> int:
        """Number of sessions of all processes, if this one has `rows` sessions."""
        return rows // len(self._held) * self._shares

    def check(self, total: int) -> None:
        """Refuses a number of sessions of all processes that the mesh does not divide.

        Raises:
          ValueError: It is 0, or no multiple of the devices that sessions are split over.
        """
        if total < 1 or total % self._shares:
            raise ValueError(
                f"sessions: got {total}, wanted a multiple of {self._shares}, the number of "
                "devices that sessions are split over, and at least one; ask for more"
            )

    def count(self, total: int) -> int:
        """Number of sessions of this process, if all processes have `total` sessions."""
        return total // self._shares * len(self._held)

    def places(self, rows: int) -> np.ndarray:
        """Indices int[rows] of this process's sessions among all sessions."""
        share = rows // len(self._held)
        return np.concatenate([np.arange(share) + share * held for held in self._held])

    def spread(self, rows: np.ndarray) -> Array:
        """Makes an array over the mesh from the rows of each process.

        Args:
          rows: [rows, ...] of any dtype, those of this process; copied.

        Returns:
          [sessions, ...] in the same dtype, of all processes.
        """
        rows = np.array(rows)
        share = len(rows) // len(self._held)

        def part(index: Any) -> np.ndarray:  # noqa: ANN401
            at = self._held.index((index[0].start or 0) // share) * share
            return rows[at : at + share]

        return jax.make_array_from_callback(
            (self.total(len(rows)), *rows.shape[1:]), self._where, part
        )

    def collect(self, array: Array) -> Array:
        """This process's rows of an array over the mesh, without waiting for the array.

        Args:
          array: [sessions, ...] of any dtype, of all processes.

        Returns:
          [rows, ...] in the same dtype.
        """
        parts = {shard.device: shard.data for shard in array.addressable_shards}
        shape = (self.count(len(array)), *array.shape[1:])
        return jax.make_array_from_single_device_arrays(
            shape, self._here, [parts[device] for device in self._here.mesh.devices.flat]
        )
