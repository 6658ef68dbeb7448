"""Sends rows to the devices of their experts and back, in slices with sizes known at run time.

A row is one pair of a token and an expert that it chose. Rows have two layouts, both packed from
row 0:

- home layout: the rows of a device's own tokens, sorted by expert, then token;
- expert layout: the rows of a device's own experts, sorted by expert, then device of the token,
  then token.

The rows that one device sends to one expert are therefore contiguous in both layouts. Where they
start follows from a table of the counts, so that no rows are sorted on arrival. Of n devices,
device i owns the experts i * E / n to (i + 1) * E / n - 1 of E.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import platform
from pallas_kernels.varying import vary, varying

Axis = str | tuple[str, ...]  # a mesh axis, or several that are used as one, in row-major order


class Slices(NamedTuple):
    """The slices of rows that each device sends to each expert: int32[n, E] each."""

    sizes: jax.Array  # rows of the slice
    home: jax.Array  # its first row in the sender's home layout
    expert: jax.Array  # its first row in the expert layout of the expert's device


def slices(counts: jax.Array) -> Slices:
    """The slices of all rows.

    Args:
      counts: int32[n, E], rows that each device sends to each expert.

    Returns:
      The slices, int32[n, E] each.
    """
    devices, experts = counts.shape
    by_owner = counts.T.reshape(devices, -1)  # [owner, its experts x devices of the tokens]
    starts = jnp.cumsum(by_owner, axis=1) - by_owner
    home = jnp.cumsum(counts, axis=1) - counts
    return Slices(counts, home, starts.reshape(experts, devices).T)


def window(rows: Slices, first: jax.Array, length: int) -> Slices:
    """The parts of slices that lie in a window of the expert layout.

    Args:
      rows: The slices of all rows.
      first: int32[], the first row of the window.
      length: Rows of the window.

    Returns:
      Slices int32[n, E] each, whose expert layout begins at the window; some of them are empty.
    """
    begin = jnp.clip(first - rows.expert, 0, rows.sizes)
    end = jnp.clip(first + length - rows.expert, 0, rows.sizes)
    place = jnp.clip(rows.expert + begin - first, 0, length)  # unused if the slice is empty
    return Slices(end - begin, rows.home + begin, place)


def _mine(table: jax.Array, axis: Axis) -> jax.Array:
    """The columns of this device's experts: [n, E / n] of [n, E]."""
    local = table.shape[1] // table.shape[0]
    return jax.lax.dynamic_slice_in_dim(table, jax.lax.axis_index(axis) * local, local, axis=1)


def _packed(sizes: jax.Array, starts: jax.Array, total: int) -> tuple[jax.Array, jax.Array]:
    """The source rows of slices that are concatenated.

    Args:
      sizes: int32[s], rows of each slice.
      starts: int32[s], the first source row of each slice.
      total: Rows of the result, at least the sum of the sizes.

    Returns:
      int32[total], the source of each row (0 past the last), and bool[total], whether it has one.
    """
    ends = jnp.cumsum(sizes)
    which = jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=total)
    row = jnp.arange(total)
    valid = row < ends[-1]
    return jnp.where(valid, row + (starts + sizes - ends)[which], 0), valid


def expert_sources(
    part: Slices, home_rows: int, total: int, *, axis: Axis
) -> tuple[jax.Array, jax.Array]:
    """The source rows of this device's expert layout.

    Args:
      part: The slices, contiguous in the expert layout.
      home_rows: Length of the home layout of a device.
      total: Length of the expert layout.
      axis: The mesh axis of the experts.

    Returns:
      int32[total], each row's index in the home layouts of all devices, concatenated by device, and
      bool[total], false for padding.
    """
    starts = _mine(part.home, axis) + home_rows * jnp.arange(len(part.home))[:, None]
    return _packed(_mine(part.sizes, axis).T.reshape(-1), starts.T.reshape(-1), total)


def to_experts(rows: jax.Array, part: Slices, onto: jax.Array, *, axis: Axis) -> jax.Array:
    """Sends rows to the devices of their experts.

    Args:
      rows: bfloat16 or float32 [h, d], this device's home layout.
      part: The slices to send, contiguous in the expert layout; the same on all devices.
      onto: [total, d] in the dtype of rows, the values of result rows that receive nothing.
      axis: The mesh axis of the experts.

    Returns:
      [total, d] in the dtype of rows, this device's expert layout.
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
      rows: bfloat16 or float32 [r, d], this device's expert layout.
      part: The slices that it consists of.
      onto: [total, d] in the dtype of rows, the values of result rows that receive nothing.
      axis: The mesh axis of the experts.

    Returns:
      [total, d] in the dtype of rows, this device's home layout.
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
    """Selects rows by index.

    Args:
      rows: bfloat16 or float32 [r, d].
      source: int32[total], indices into rows.
      valid: bool[total], whether to take the row.
      otherwise: [total, d] in the dtype of rows, the result where not valid.

    Returns:
      [total, d] in the dtype of rows.
    """
    return jnp.where(valid[:, None], rows[source], otherwise)


def zeros(total: int, like: jax.Array) -> jax.Array:
    """Rows of zeros, varying over the mesh axes that `like` varies over.

    Args:
      total: Rows of the result.
      like: bfloat16 or float32 [r, d].

    Returns:
      [total, d] in the dtype of `like`.
    """
    return jnp.pad(like[:0], ((0, total), (0, 0)))


def blank(total: int, like: jax.Array) -> jax.Array:
    """Uninitialised rows, varying over the mesh axes that `like` varies over.

    Args:
      total: Rows of the result.
      like: bfloat16 or float32 [r, d].

    Returns:
      [total, d] in the dtype of `like`; the values are undefined and may be NaN.
    """
    return vary(jax.lax.empty((total, like.shape[1]), like.dtype), varying(like))
