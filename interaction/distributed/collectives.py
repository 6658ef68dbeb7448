"""Collectives of the model inside `jax.shard_map`; outside of one they do nothing.

Model, step and losses are written for one device. Inside a `shard_map` over the axes below each
device runs the same code on its part of the sessions, micro-turns, experts and output columns, and
these functions exchange what the other devices need.

No contraction is split: the inputs of a product are gathered, and the devices share its output
columns. A product is therefore the same sum on every mesh. Only the experts of a step's few tokens
are summed device by device, see `distributed.experts`.
"""

import math

import jax
import jax.numpy as jnp

from interaction.types import Array

DATA, FSDP, EXPERT, SEQUENCE, TENSOR = AXES = ("data", "fsdp", "expert", "sequence", "tensor")
SESSIONS = (DATA, FSDP, EXPERT)  # axes that sessions are split over
TURNS = (*SESSIONS, SEQUENCE)  # axes that micro-turns of all sessions are split over
EXPERTS = (EXPERT, TENSOR)  # axes that experts are split over


def axis_size(*axes: str) -> int:
    """Number of devices along mesh axes of the enclosing `shard_map`; 1 outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes if axis in mesh.manual_axes)


def axis_index(*axes: str) -> Array | int:
    """Index int32[] of this device along mesh axes, in row-major order; 0 outside of a mesh."""
    return jax.lax.axis_index(axes) if axis_size(*axes) > 1 else 0


def local(size: int, *axes: str) -> int:
    """A device's share of `size` items that are split over mesh axes.

    Raises:
      ValueError: The number of devices does not divide `size`.
    """
    if size % axis_size(*axes):
        raise ValueError(
            f"mesh: got {size} items to split over {axes}, wanted a multiple of the "
            f"{axis_size(*axes)} devices there; change the mesh or the size"
        )
    return size // axis_size(*axes)


def gather(x: Array, *axes: str, dim: int = -1) -> Array:
    """Concatenates the parts of all devices along mesh axes.

    Args:
      x: [..., d, ...] of any dtype, this device's part.
      *axes: Mesh axes.
      dim: Dimension to concatenate along.

    Returns:
      [..., d * devices, ...] in x's dtype.
    """
    if axis_size(*axes) == 1:
        return x
    with jax.named_scope("gather_" + "_".join(axes)):
        return jax.lax.all_gather(x, axes, axis=dim % x.ndim, tiled=True)


def take_part(x: Array, *axes: str, dim: int) -> Array:
    """This device's part of an array that is the same on all devices along mesh axes.

    Args:
      x: [..., d, ...] of any dtype.
      *axes: Mesh axes, whose number of devices divides d.
      dim: Dimension to split.

    Returns:
      [..., d / devices, ...] in x's dtype.
    """
    if axis_size(*axes) == 1:
        return x
    size = local(x.shape[dim], *axes)
    return jax.lax.dynamic_slice_in_dim(x, axis_index(*axes) * size, size, dim)


def last_rows_before(x: Array, rows: int, axis: str) -> Array:
    """The last rows of the device before this one along an axis; zeros for the first device.

    Args:
      x: [b, t, ...] of any dtype, this device's part.
      rows: Number of rows.
      axis: Mesh axis.

    Returns:
      [b, rows, ...] in x's dtype.

    Raises:
      ValueError: A device has fewer rows.
    """
    nothing = jnp.zeros((x.shape[0], rows, *x.shape[2:]), x.dtype)
    if axis_size(axis) == 1:
        return nothing
    if x.shape[1] < rows:
        raise ValueError(
            f"mesh: got {x.shape[1]} positions on a device of {axis}={axis_size(axis)}, wanted at "
            f"least the {rows} that the next device reads; lower the axis or take longer sessions"
        )
    everywhere = jnp.concatenate([nothing, gather(x[:, -rows:], axis, dim=1)], axis=1)
    return jax.lax.dynamic_slice_in_dim(everywhere, axis_index(axis) * rows, rows, axis=1)


def total(x: Array, *axes: str) -> Array:
    """Sum of the arrays [...] of the devices along mesh axes, in x's dtype."""
    return jax.lax.psum(x, axes) if axis_size(*axes) > 1 else x
