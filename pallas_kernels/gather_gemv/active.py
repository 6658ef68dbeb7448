"""The distinct experts that the tokens chose."""

import jax
import jax.numpy as jnp


def active_experts(experts: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Lists the distinct chosen experts in ascending order, by comparisons instead of a sort.

    Args:
      experts: int32[t, k], the experts that each token chose; ids outside 0 .. num_experts - 1
        choose no expert.
      num_experts: Number of experts.

    Returns:
      int32[min(num_experts, t * k)], which begins with the list and repeats its last entry (0 if
      the list is empty), and int32[], the length of the list.
    """
    ids = jnp.arange(num_experts, dtype=jnp.int32)
    present = jnp.any(experts.reshape(-1)[None, :] == ids[:, None], axis=1)
    before = jnp.sum(present[None, :] & (ids[None, :] < ids[:, None]), axis=1)
    count = jnp.sum(present, dtype=jnp.int32)
    places = jnp.arange(min(num_experts, experts.size), dtype=jnp.int32)
    wanted = jnp.minimum(places, count - 1)
    here = present[None, :] & (before[None, :] == wanted[:, None])
    return jnp.sum(jnp.where(here, ids[None, :], 0), axis=1, dtype=jnp.int32), count
