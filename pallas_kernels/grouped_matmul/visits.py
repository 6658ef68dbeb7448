"""The rows of each group, and the lists of (row tile, group) pairs that kernels visit."""

import jax
import jax.numpy as jnp


def group_bounds(group_sizes: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """First row and end of each group.

    Args:
      group_sizes: int32[e], any values: a negative size counts as 0, and groups end at `rows`.
      rows: Number of rows.

    Returns:
      int32[e], the first row of each group, and int32[e], the row after its last;
      0 <= start <= end <= rows.
    """
    sizes = jnp.clip(group_sizes, 0, rows)
    # A sum that saturates at `rows` cannot overflow for any sizes.
    ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, rows), sizes)
    return jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]]), ends


def with_rest(starts: jax.Array, ends: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Appends a group of the rows that belong to no group.

    Args:
      starts: int32[e], first row of each group.
      ends: int32[e], row after the last of each group.
      rows: Number of rows.

    Returns:
      int32[e + 1], the first row of each group, and int32[e + 1], the row after its last.
    """
    last = jnp.full_like(ends[-1:], rows)
    return jnp.concatenate([starts, ends[-1:]]), jnp.concatenate([ends, last])


def expand(counts: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Lists the visits of all groups in order.

    Args:
      counts: int32[g], number of visits of each group; the sum is at most `length`.
      length: Static length of the list.

    Returns:
      int32[length], the group of each visit, g past the last visit, and int32[length], the index of
      the visit within its group.
    """
    ends = jnp.cumsum(counts)
    visit = jnp.arange(length, dtype=jnp.int32)
    group = jnp.sum(visit[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    first = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    return group, visit - first[group]


def tile_visits(
    starts: jax.Array, ends: jax.Array, rows: int, tile: int, visit_empty: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lists the pairs of a row tile and a group with rows in it, by ascending tile and group.

    Args:
      starts: int32[g], first row of each group.
      ends: int32[g], row after the last of each group.
      rows: Number of rows, at least 1.
      tile: Rows of a tile.
      visit_empty: Whether an empty group is listed, once, with a tile that has no rows of it.

    Returns:
      int32[v], the groups, and int32[v], the tiles, with v = number of row tiles + g; and int32[],
      the number of valid pairs. The entries past these repeat a valid pair.
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
    """Lists row tiles that are aligned with the start of their group and belong to it alone.

    Args:
      starts: int32[g], first row of each group.
      ends: int32[g], row after the last of each group.
      rows: Number of rows.
      tile: Rows of a tile; the last tile of a group may extend past the group's end.

    Returns:
      int32[t], the groups, and int32[t], the first rows, with t = number of row tiles + g; and
      int32[], the number of valid tiles. The entries past these have a first row at or past the end
      of their group.
    """
    counts = -(-(ends - starts) // tile)
    group, number = expand(counts, -(-rows // tile) + starts.shape[0])
    last = starts.shape[0] - 1
    first = jnp.where(group > last, ends[-1], starts[jnp.minimum(group, last)] + number * tile)
    return jnp.minimum(group, last), first, jnp.sum(counts)
