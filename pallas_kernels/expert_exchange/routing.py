"""Which device gets which rows: the router's choices, sorted by expert."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.expert_exchange.ragged import Axis


class Route(NamedTuple):
    """Where the rows of one `dispatch` went; `combine` uses it to bring them back.

    A row is one pair of a token and an expert that the token chose. The home rows of a device are
    the rows of its own tokens, sorted by expert, then token; there is space for h = t *
    min(k, num_experts) of them.
    """

    counts: jax.Array  # int32[n, num_experts], rows that each device sends to each expert
    pairs: jax.Array  # int32[h], token * k + choice of each home row; past the last row undefined
    experts: jax.Array  # int32[t, k], each token's choices in ascending order
    order: jax.Array  # int32[t, k], the places of these choices in the caller's order
    slots: jax.Array  # int32[t, k], the home rows of these choices; h for a choice without a row
    # int32[n * h], the token (of all n * t) of each home row of all devices, concatenated by
    # device; None for the all-to-all.
    tokens: jax.Array | None


def make_route(experts: jax.Array, num_experts: int, axis: Axis, method: str) -> Route:
    """Sorts this device's pairs by expert and gathers the counts of all devices.

    Args:
      experts: int32[t, k], the experts that each of this device's tokens chose.
      num_experts: Experts on all devices of the axis together.
      axis: The mesh axis of the experts.
      method: "all_gather" or "all_to_all".

    Returns:
      The route of this device.
    """
    tokens, choices = experts.shape
    home_rows = tokens * min(choices, num_experts)
    known = (experts >= 0) & (experts < num_experts)
    experts = jnp.where(known, experts, num_experts)
    order = jnp.argsort(experts, axis=1, stable=True)
    experts = jnp.take_along_axis(experts, order, axis=1)
    again = jnp.pad(experts[:, 1:] == experts[:, :-1], ((0, 0), (1, 0)))
    keys = jnp.where(again, num_experts, experts).reshape(-1)
    pairs = jnp.argsort(keys, stable=True)
    slots = jnp.where(keys < num_experts, jnp.argsort(pairs), home_rows)
    pairs = pairs[:home_rows].astype(jnp.int32)
    counts = jnp.sum(keys == jnp.arange(num_experts)[:, None], axis=1, dtype=jnp.int32)
    global_tokens = jax.lax.axis_index(axis) * tokens + pairs // max(choices, 1)
    return Route(
        counts=jax.lax.all_gather(counts, axis),
        pairs=pairs,
        experts=experts,
        order=order.astype(jnp.int32),
        slots=slots.astype(jnp.int32).reshape(tokens, choices),
        tokens=jax.lax.all_gather(global_tokens, axis, tiled=True)
        if method == "all_gather"
        else None,
    )


def weights_by_expert(weights: jax.Array, route: Route) -> jax.Array:
    """Router weights in the order of the route's experts.

    Args:
      weights: float32[t, k], in the caller's order of choices.
      route: The route of these tokens.

    Returns:
      float32[t, k]. If a token chose an expert twice, the first choice has the sum of both weights
      and the second has 0; a choice of no expert has 0.
    """
    weights = jnp.take_along_axis(weights, route.order, axis=1)
    same = route.experts[:, :, None] == route.experts[:, None, :]
    weights = jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=2)
    return jnp.where(route.slots < len(route.pairs), weights, 0.0)


def local_sizes(counts: jax.Array, axis: Axis) -> jax.Array:
    """Rows of each of this device's experts.

    Args:
      counts: int32[n, num_experts], rows that each device sends to each expert.
      axis: The mesh axis of the experts.

    Returns:
      int32[num_experts / n].
    """
    sizes = jnp.sum(counts, axis=0).reshape(len(counts), -1)
    return sizes[jax.lax.axis_index(axis)]


def expert_rows(route: Route) -> int:
    """Length of the expert layout: enough rows for any choice of the tokens."""
    devices, num_experts = route.counts.shape
    tokens, choices = route.slots.shape
    return devices * tokens * min(choices, num_experts // devices)
