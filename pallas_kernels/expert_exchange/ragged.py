"""Rows to the devices of their experts and back, in groups of sizes known only at run time.

Two layouts of the rows, both packed from row 0:

- home: the rows of a device's own tokens, sorted by expert, then token;
- expert: the rows of a device's own experts, sorted by expert, then device of the token, then
  token.

So the rows that one device sends to one expert are one slice in both, and a table of the
counts says where it starts: no row is sorted again on arrival. Of n devices, device i owns the
experts i * E / n to (i + 1) * E / n - 1 of E.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import platform

Axis = str | tuple[str, ...]  # a mesh axis, or several as one, the first the slowest


def home_starts(counts: jax.Array) -> jax.Array:
    """Where each expert's rows start in each device's home layout.

    Args:
      counts: int32[n, E], rows that each device sends to each expert.

    Returns:
      int32[n, E].
    """
    return jnp.cumsum(counts, axis=1) - counts


def expert_starts(counts: jax.Array) -> jax.Array:
    """Where each device's rows start in the layout of the expert's device.

    Args:
      counts: int32[n, E], rows that each device sends to each expert.

    Returns:
      int32[n, E], by device of the token and expert.
    """
    devices, experts = counts.shape
    by_owner = counts.T.reshape(devices, -1)  # [owner, its experts x devices of the tokens]
    starts = jnp.cumsum(by_owner, axis=1) - by_owner
    return starts.reshape(experts, devices).T


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
    counts: jax.Array, home_rows: int, total: int, *, axis: Axis
) -> tuple[jax.Array, jax.Array]:
    """Where the rows of this device's expert layout come from.

    Args:
      counts: int32[n, E], rows that each device sends to each expert.
      home_rows: Length of a device's home layout.
      total: Length of the expert layout.
      axis: The mesh axis of the experts.

    Returns:
      int32[total], the row in all devices' home layouts one after another, and bool[total],
      false for padding.
    """
    device_starts = home_rows * jnp.arange(len(counts))[:, None]
    starts = _mine(home_starts(counts), axis) + device_starts
    return _packed(_mine(counts, axis).T.reshape(-1), starts.T.reshape(-1), total)


def to_experts(rows: jax.Array, counts: jax.Array, total: int, *, axis: Axis) -> jax.Array:
    """Sends rows to the devices of their experts.

    Args:
      rows: [h, d], this device's home layout.
      counts: int32[n, E], rows that each device sends to each expert; the same on all devices.
      total: Length of the expert layout, enough for any counts.
      axis: The mesh axis of the experts.

    Returns:
      [total, d], this device's expert layout, zero past the last row.
    """
    if platform() == "cpu" or len(counts) == 1:
        source, valid = expert_sources(counts, len(rows), total, axis=axis)
        return pick_rows(jax.lax.all_gather(rows, axis, tiled=True), source, valid)
    me = jax.lax.axis_index(axis)
    return jax.lax.ragged_all_to_all(
        rows,
        _zeros_like_rows(rows, total),
        home_starts(counts)[me],
        counts[me],
        expert_starts(counts)[me],
        _mine(counts, axis).reshape(-1),
        axis_name=axis,
    )


def to_home(rows: jax.Array, counts: jax.Array, total: int, *, axis: Axis) -> jax.Array:
    """Sends rows back to the devices of their tokens: the inverse of `to_experts`.

    Args:
      rows: [r, d], this device's expert layout.
      counts: int32[n, E], rows that each device sent to each expert.
      total: Length of the home layout.
      axis: The mesh axis of the experts.

    Returns:
      [total, d], this device's home layout, zero past the last row.
    """
    me = jax.lax.axis_index(axis)
    starts = expert_starts(counts)
    if platform() == "cpu" or len(counts) == 1:
        local = counts.shape[1] // len(counts)
        owner_starts = len(rows) * (jnp.arange(counts.shape[1]) // local)
        source, valid = _packed(counts[me], starts[me] + owner_starts, total)
        return pick_rows(jax.lax.all_gather(rows, axis, tiled=True), source, valid)
    return jax.lax.ragged_all_to_all(
        rows,
        _zeros_like_rows(rows, total),
        _mine(starts, axis).reshape(-1),
        _mine(counts, axis).reshape(-1),
        _mine(home_starts(counts), axis).reshape(-1),
        counts[me],
        axis_name=axis,
    )


def pick_rows(rows: jax.Array, source: jax.Array, valid: jax.Array) -> jax.Array:
    """rows[source], zero where not valid."""
    return jnp.where(valid[:, None], rows[source], jnp.zeros((), rows.dtype))


def _zeros_like_rows(rows: jax.Array, total: int) -> jax.Array:
    """Zeros [total, d] that vary over the mesh axes that the rows vary over."""
    return jnp.pad(rows[:0], ((0, total), (0, 0)))
