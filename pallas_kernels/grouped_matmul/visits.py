"""Which rows belong to which group, and the list of (row tile, group) pairs a kernel visits."""

import jax
import jax.numpy as jnp


def group_bounds(group_sizes: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """First row of each group and the row after its last.

    Args:
      group_sizes: int32[e], any values: a negative size counts as 0 and groups end at `rows`.
      rows: Rows there are.

    Returns:
      starts int32[e] and ends int32[e], 0 <= starts <= ends <= rows.
    """
    sizes = jnp.clip(group_sizes, 0, rows)
    # A sum that saturates at `rows` cannot overflow, whatever the sizes are.
    ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, rows), sizes)
    return jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]]), ends


def with_rest(starts: jax.Array, ends: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Bounds with one more group at the end: the rows that belong to no group.

    Args:
      starts: int32[e], as `group_bounds` gives them.
      ends: int32[e].
      rows: Rows there are.

    Returns:
      starts int32[e + 1] and ends int32[e + 1].
    """
    last = jnp.full_like(ends[-1:], rows)
    return jnp.concatenate([starts, ends[-1:]]), jnp.concatenate([ends, last])


def expand(counts: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Lists the visits of groups that get `counts` visits each, in order.

    Args:
      counts: int32[g] visits of each group, with sum <= length.
      length: Static length of the list.

    Returns:
      group int32[length], g for the entries past the last visit, and the visit's number within
      its group int32[length].
    """
    ends = jnp.cumsum(counts)
    visit = jnp.arange(length, dtype=jnp.int32)
    group = jnp.sum(visit[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    first = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    return group, visit - first[group]


def tile_visits(
    starts: jax.Array, ends: jax.Array, rows: int, tile: int, visit_empty: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pairs of a row tile and a group with rows in it, by ascending tile and group.

    Args:
      starts: int32[g] first row of each group.
      ends: int32[g] row after each group's last.
      rows: Rows there are, at least 1.
      tile: Rows of a tile.
      visit_empty: Whether an empty group gets a visit, of a tile none of whose rows it has.

    Returns:
      group int32[v] and tile int32[v], v = row tiles + g, and how many of them count, int32[].
      The entries past the last that counts repeat a valid pair.
    """
    first = starts // tile
    counts = jnp.where(ends > starts, (ends - 1) // tile - first + 1, int(visit_empty))
    tiles = -(-rows // tile)
    group, number = expand(counts, tiles + starts.shape[0])
    group = jnp.minimum(group, starts.shape[0] - 1)
    return group, jnp.clip(first[group] + number, 0, tiles - 1), jnp.sum(counts)


def group_tiles(
    starts: jax.Array, ends: jax.Array, rows: int, tile: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Row tiles that begin where their group does, so that each holds rows of one group only.

    Args:
      starts: int32[g] first row of each group.
      ends: int32[g] row after each group's last.
      rows: Rows there are.
      tile: Rows of a tile; the last tile of a group may reach past its end.

    Returns:
      group int32[t] and first row int32[t], and how many of them count, int32[]. The entries past
      the last that counts have a first row at or past the end of their group.
    """
    counts = -(-(ends - starts) // tile)
    group, number = expand(counts, -(-rows // tile) + starts.shape[0])
    last = starts.shape[0] - 1
    first = jnp.where(group > last, ends[-1], starts[jnp.minimum(group, last)] + number * tile)
    return jnp.minimum(group, last), first, jnp.sum(counts)
