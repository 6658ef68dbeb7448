"""Collectives of the model's code: what its functions do where they run inside `jax.shard_map`.

Model, step and losses are written for one device. Inside a `shard_map` over the axes below each
device runs the same code on its own sessions, micro-turns, experts and output columns, and these
functions bring together what it lacks. Outside of one they do nothing.

No contraction is ever split: a product's inputs are gathered, its outputs are what devices share
out. So a product is the same sum on any mesh; only the experts of a step's few tokens are added up
device by device, see `ops.experts`.
"""

import math

import jax

from interaction.types import Array

DATA, FSDP, EXPERT, SEQUENCE, TENSOR = AXES = ("data", "fsdp", "expert", "sequence", "tensor")
SESSIONS = (DATA, FSDP, EXPERT)  # axes that sessions are split over
TURNS = (*SESSIONS, SEQUENCE)  # axes that micro-turns of all sessions are split over
EXPERTS = (EXPERT, TENSOR)  # axes that experts are split over


def axis_size(*axes: str) -> int:
    """Devices along mesh axes of the `shard_map` that is traced; 1 outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes if axis in mesh.manual_axes)


def axis_index(*axes: str) -> Array | int:
    """This device's place along mesh axes, the first axis the slowest; 0 outside of a mesh."""
    return jax.lax.axis_index(axes) if axis_size(*axes) > 1 else 0


def local(size: int, *axes: str) -> int:
    """A device's part of `size` things that are split over mesh axes.

    Raises:
      ValueError: The devices do not divide it.
    """
    if size % axis_size(*axes):
        raise ValueError(
            f"mesh: got {size} things to split over {axes}, wanted a multiple of the "
            f"{axis_size(*axes)} devices there; change the mesh or the size"
        )
    return size // axis_size(*axes)


def gather(x: Array, *axes: str, dim: int = -1) -> Array:
    """Puts the parts of all devices along mesh axes together, along dimension `dim`."""
    if axis_size(*axes) == 1:
        return x
    with jax.named_scope("gather_" + "_".join(axes)):
        return jax.lax.all_gather(x, axes, axis=dim % x.ndim, tiled=True)


def take_part(x: Array, *axes: str, dim: int) -> Array:
    """This device's part of what is the same on all devices along mesh axes."""
    if axis_size(*axes) == 1:
        return x
    size = local(x.shape[dim], *axes)
    return jax.lax.dynamic_slice_in_dim(x, axis_index(*axes) * size, size, dim)


def total(x: Array, *axes: str) -> Array:
    """Sum of what devices along mesh axes hold."""
    return jax.lax.psum(x, axes) if axis_size(*axes) > 1 else x
