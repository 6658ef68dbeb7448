"""Rows to the devices of their experts and back, in groups of sizes known only at run time.

Two layouts of the rows, both packed from row 0:

- home: the rows of a device's own tokens, sorted by expert, then token;
- expert: the rows of a device's own experts, sorted by expert, then device of the token, then
  token.

So the rows that one device sends to one expert are one slice in both, and a table of the
counts says where it starts: no row is sorted again on arrival. Of n devices, device i owns the
experts i * E / n to (i + 1) * E / n - 1 of E.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import platform
from pallas_kernels.varying import vary, varying

Axis = str | tuple[str, ...]  # a mesh axis, or several as one, the first the slowest


class Slices(NamedTuple):
    """The rows that each device sends to each expert, or a part of them: int32[n, E] each."""

    sizes: jax.Array  # rows
    home: jax.Array  # where they start in the sender's home layout
    expert: jax.Array  # where they start in the layout of the expert's device


def slices(counts: jax.Array) -> Slices:
    """All rows, of counts int32[n, E] that each device sends to each expert."""
    devices, experts = counts.shape
    by_owner = counts.T.reshape(devices, -1)  # [owner, its experts x devices of the tokens]
    starts = jnp.cumsum(by_owner, axis=1) - by_owner
    home = jnp.cumsum(counts, axis=1) - counts
    return Slices(counts, home, starts.reshape(experts, devices).T)


def window(rows: Slices, first: jax.Array, length: int) -> Slices:
    """What lies in some rows of the expert layout, as a layout of its own.

    Args:
      rows: All rows.
      first: int32[], the first row of the window.
      length: Rows of the window.

    Returns:
      Slices, some of them empty.
    """
    begin = jnp.clip(first - rows.expert, 0, rows.sizes)
    end = jnp.clip(first + length - rows.expert, 0, rows.sizes)
    place = jnp.clip(rows.expert + begin - first, 0, length)  # of an empty one: anywhere
    return Slices(end - begin, rows.home + begin, place)


def _mine(table: jax.Array, axis: Axis) -> jax.Array:
    """The columns of this device's experts: [n, E / n] of [n, E]."""
    local = table.shape[1] // table.shape[0]
    return jax.lax.dynamic_slice_in_dim(table, jax.lax.axis_index(axis) * local, local, axis=1)


def _packed(sizes: jax.Array, starts: jax.Array, total: int) -> tuple[jax.Array, jax.Array]:
    """Slices laid one after another.

    Args:
      sizes: int32[s], rows of each slice.
      starts: int32[s], the first source row of each.
      total: Rows to fill.

    Returns:
      int32[total], each row's source (0 past the last), and bool[total], whether it has one.
    """
    ends = jnp.cumsum(sizes)
    which = jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=total)
    row = jnp.arange(total)
    valid = row < ends[-1]
    return jnp.where(valid, row + (starts + sizes - ends)[which], 0), valid


def expert_sources(
    part: Slices, home_rows: int, total: int, *, axis: Axis
) -> tuple[jax.Array, jax.Array]:
    """Where the rows of this device's expert layout come from.

    Args:
      part: The rows, without gaps in the expert layout.
      home_rows: Length of a device's home layout.
      total: Length of the expert layout.
      axis: The mesh axis of the experts.

    Returns:
      int32[total], the row in all devices' home layouts one after another, and bool[total],
      false for padding.
    """
    starts = _mine(part.home, axis) + home_rows * jnp.arange(len(part.home))[:, None]
    return _packed(_mine(part.sizes, axis).T.reshape(-1), starts.T.reshape(-1), total)


def to_experts(rows: jax.Array, part: Slices, onto: jax.Array, *, axis: Axis) -> jax.Array:
    """Sends rows to the devices of their experts.

    Args:
      rows: [h, d], this device's home layout.
      part: The rows to send, without gaps in the expert layout; the same on all devices.
      onto: [total, d], what other rows than those that come hold.
      axis: The mesh axis of the experts.

    Returns:
      [total, d], this device's expert layout.
    """
    if platform() == "cpu" or len(part.sizes) == 1:
        source, valid = expert_sources(part, len(rows), len(onto), axis=axis)
        return pick_rows(jax.lax.all_gather(rows, axis, tiled=True), source, valid, onto)
    me = jax.lax.axis_index(axis)
    return jax.lax.ragged_all_to_all(
        rows,
        onto,
        part.home[me],
        part.sizes[me],
        part.expert[me],
        _mine(part.sizes, axis).reshape(-1),
        axis_name=axis,
    )


def to_home(rows: jax.Array, part: Slices, onto: jax.Array, *, axis: Axis) -> jax.Array:
    """Sends rows back to the devices of their tokens: the inverse of `to_experts`.

    Args:
      rows: [r, d], this device's expert layout.
      part: The rows that it was made of.
      onto: [total, d], this device's home layout, what its other rows hold.
      axis: The mesh axis of the experts.

    Returns:
      [total, d], this device's home layout.
    """
    me = jax.lax.axis_index(axis)
    if platform() == "cpu" or len(part.sizes) == 1:
        devices, experts = part.sizes.shape
        sizes, home, expert = (table[me][:, None] for table in part)
        row = jnp.arange(len(onto))
        inside = (row >= home) & (row < home + sizes)  # [E, total]
        owner = len(rows) * (jnp.arange(experts)[:, None] // (experts // devices))
        source = jnp.sum(jnp.where(inside, owner + expert + row - home, 0), axis=0)
        everything = jax.lax.all_gather(rows, axis, tiled=True)
        return pick_rows(everything, source, jnp.any(inside, axis=0), onto)
    return jax.lax.ragged_all_to_all(
        rows,
        onto,
        _mine(part.expert, axis).reshape(-1),
        _mine(part.sizes, axis).reshape(-1),
        _mine(part.home, axis).reshape(-1),
        part.sizes[me],
        axis_name=axis,
    )


def pick_rows(
    rows: jax.Array, source: jax.Array, valid: jax.Array, otherwise: jax.Array
) -> jax.Array:
    """rows[source], those of `otherwise` where not valid."""
    return jnp.where(valid[:, None], rows[source], otherwise)


def zeros(total: int, like: jax.Array) -> jax.Array:
    """[total, d] for `like` [r, d], varying over the mesh axes that it varies over."""
    return jnp.pad(like[:0], ((0, total), (0, 0)))


def blank(total: int, like: jax.Array) -> jax.Array:
    """Rows [total, d] that hold anything, for `like` [r, d]: nothing is written."""
    return vary(jax.lax.empty((total, like.shape[1]), like.dtype), varying(like))
