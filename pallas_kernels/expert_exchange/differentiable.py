"""Dispatch, combine and the chunked layer, with hand-written gradients.

The gradient of a dispatch is a combine with weights of 1, and the gradient of a combine is a
dispatch of the output's gradient, scaled by the weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.expert_exchange.ragged import (
    Axis,
    Slices,
    blank,
    expert_sources,
    pick_rows,
    slices,
    to_experts,
    to_home,
    window,
    zeros,
)
from pallas_kernels.expert_exchange.routing import Route, expert_rows, local_sizes
from pallas_kernels.expert_exchange.validation import check_ffn_rows
from pallas_kernels.varying import vary


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch_rows(x: jax.Array, route: Route, axis: Axis) -> jax.Array:
    """Sends tokens to the devices of their experts.

    Args:
      x: bfloat16 or float32 [t, d], this device's tokens.
      route: Their route.
      axis: The mesh axis of the experts.

    Returns:
      [expert_rows(route), d] in x's dtype, this device's expert layout, zero past the last row.
    """
    return _send_all(_sender(x, None, route, axis), x, route)


def _dispatch_fwd(x: jax.Array, route: Route, axis: Axis) -> tuple[jax.Array, Route]:
    return dispatch_rows(x, route, axis), route


def _dispatch_bwd(axis: Axis, route: Route, d_rows: jax.Array) -> tuple[jax.Array, None]:
    return _sum_all(_bring_home(d_rows, route, axis), route), None


dispatch_rows.defvjp(_dispatch_fwd, _dispatch_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def combine_rows(y: jax.Array, weights: jax.Array, route: Route, axis: Axis) -> jax.Array:
    """Brings the experts' rows back to their tokens, weights them and sums them.

    Args:
      y: bfloat16 or float32 [expert_rows(route), d], this device's expert layout.
      weights: float32[t, k], in the order of the route's experts.
      route: The route of the dispatch.
      axis: The mesh axis of the experts.

    Returns:
      [t, d] in y's dtype.
    """
    return _combine_fwd(y, weights, route, axis)[0]


def _combine_fwd(
    y: jax.Array, weights: jax.Array, route: Route, axis: Axis
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Route]]:
    home = _bring_home(y, route, axis)
    return _sum_choices(home, weights, route.slots), (home, weights, route)


def _combine_bwd(
    axis: Axis, saved: tuple[jax.Array, jax.Array, Route], d_out: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    home, weights, route = saved
    d_y = _send_all(_sender(d_out, weights, route, axis), d_out, route)
    return d_y, _products(d_out, home, route), None


combine_rows.defvjp(_combine_fwd, _combine_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def in_chunks(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    axis: Axis,
    chunk_rows: int,
    params: Any,  # noqa: ANN401
    x: jax.Array,
    weights: jax.Array,
    route: Route,
) -> jax.Array:
    """Dispatch, experts and combine, for `chunk_rows` rows of the expert layout at a time.

    Args:
      ffn: The local experts, see `exchange_layer`.
      axis: The mesh axis of the experts.
      chunk_rows: Rows of a chunk.
      params: The parameters of ffn: a tree of bfloat16 or float32 arrays.
      x: bfloat16 or float32 [t, d], this device's tokens.
      weights: float32[t, k], in the order of the route's experts.
      route: The route of the tokens.

    Returns:
      [t, d] in x's dtype.
    """
    send = _sender(x, None, route, axis)

    def take(number: jax.Array, home: jax.Array) -> jax.Array:
        part, sizes = _chunk(number, chunk_rows, route, axis)
        y = ffn(params, send(part, blank(chunk_rows, x)), sizes)
        check_ffn_rows(y, chunk_rows, x)
        return to_home(y, part, home, axis=axis)

    count = _chunk_count(route, chunk_rows, axis)
    home = jax.lax.fori_loop(0, count, take, blank(len(route.pairs), x))
    return _sum_choices(home, weights, route.slots)


def _in_chunks_fwd(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    axis: Axis,
    chunk_rows: int,
    *operands: Any,  # noqa: ANN401
) -> tuple[jax.Array, tuple]:
    return in_chunks(ffn, axis, chunk_rows, *operands), operands


def _in_chunks_bwd(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    axis: Axis,
    chunk_rows: int,
    saved: tuple,
    d_out: jax.Array,
) -> tuple[Any, jax.Array, jax.Array, None]:
    params, x, weights, route = saved
    send, send_gradient = _sender(x, None, route, axis), _sender(d_out, weights, route, axis)

    def take(number: jax.Array, carry: tuple) -> tuple:
        home, d_home, d_params = carry
        part, sizes = _chunk(number, chunk_rows, route, axis)
        rows = send(part, blank(chunk_rows, x))
        y, pull = jax.vjp(lambda params, rows: ffn(params, rows, sizes), params, rows)
        more, d_rows = pull(send_gradient(part, blank(chunk_rows, d_out)))
        return (
            to_home(y, part, home, axis=axis),
            to_home(d_rows, part, d_home, axis=axis),
            jax.tree.map(jnp.add, d_params, more),
        )

    unwritten = blank(len(route.pairs), d_out), blank(len(route.pairs), x)
    count = _chunk_count(route, chunk_rows, axis)
    home, d_home, d_params = jax.lax.fori_loop(
        0, count, take, (*unwritten, jax.tree.map(jnp.zeros_like, params))
    )
    return d_params, _sum_all(d_home, route), _products(d_out, home, route), None


in_chunks.defvjp(_in_chunks_fwd, _in_chunks_bwd)


def _chunk_count(route: Route, chunk_rows: int, axis: Axis) -> jax.Array:
    """Chunks that the busiest device of the whole mesh needs: int32[].

    All devices must run the loop equally often, also along the other mesh axes: the experts may
    contain collectives over those axes, which all their devices must reach.
    """
    mine = jnp.sum(local_sizes(route.counts, axis))
    everywhere = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    busiest = jax.lax.pmax(vary(mine, frozenset(everywhere)), everywhere)
    return (busiest + chunk_rows - 1) // chunk_rows


def _chunk(
    number: jax.Array, chunk_rows: int, route: Route, axis: Axis
) -> tuple[Slices, jax.Array]:
    """The rows of a chunk, and how many of them each of this device's experts has."""
    part = window(slices(route.counts), number * chunk_rows, chunk_rows)
    return part, local_sizes(part.sizes, axis)


def _products(d_out: jax.Array, home: jax.Array, route: Route) -> jax.Array:
    """The gradient of the weights: float32[t, k]."""
    wide = d_out.astype(jnp.float32)
    return jnp.stack([jnp.sum(wide * row, axis=1) for row in _choices(home, route.slots)], axis=1)


def _bring_home(rows: jax.Array, route: Route, axis: Axis) -> jax.Array:
    """All rows of the expert layout, in the home layout, zero past the last row."""
    return to_home(rows, slices(route.counts), zeros(len(route.pairs), rows), axis=axis)


def _choices(home: jax.Array, slots: jax.Array) -> list[jax.Array]:
    """The rows of each token's first, second, ... expert: k times float32[t, d]."""
    return [home.at[slot].get(mode="fill", fill_value=0).astype(jnp.float32) for slot in slots.T]


def _sum_choices(home: jax.Array, weights: jax.Array, slots: jax.Array) -> jax.Array:
    """Weighted sum of each token's rows by ascending expert, [t, d] of home rows [h, d]."""
    total = jnp.zeros((len(slots), home.shape[1]), jnp.float32)
    for row, weight in zip(_choices(home, slots), weights.T, strict=True):
        total = total + weight[:, None] * row
    return total.astype(home.dtype)


def _sum_all(home: jax.Array, route: Route) -> jax.Array:
    """Sum of each token's rows by ascending expert, [t, d] of home rows [h, d]."""
    return _sum_choices(home, jnp.ones(route.slots.shape, jnp.float32), route.slots)


def _sender(
    x: jax.Array, weights: jax.Array | None, route: Route, axis: Axis
) -> Callable[[Slices, jax.Array], jax.Array]:
    """A function that sends tokens [t, d], scaled by float32 weights [t, k] if there are any.

    It takes the slices to send and the initial values of the result, as `ragged.to_experts` does.
    """
    scale = None if weights is None else weights.reshape(-1)[route.pairs]
    if route.tokens is None:
        rows = _scaled(x[route.pairs // route.slots.shape[1]], scale)
        return functools.partial(to_experts, rows, axis=axis)
    places, tokens = route.tokens, jax.lax.all_gather(x, axis, tiled=True)
    scales = None if scale is None else jax.lax.all_gather(scale, axis, tiled=True)

    def pick(part: Slices, onto: jax.Array) -> jax.Array:
        source, valid = expert_sources(part, len(route.pairs), len(onto), axis=axis)
        rows = pick_rows(tokens, places[source], valid, onto)
        return _scaled(rows, None if scales is None else scales[source])

    return pick


def _send_all(
    send: Callable[[Slices, jax.Array], jax.Array], like: jax.Array, route: Route
) -> jax.Array:
    """All rows that `send` sends, in an expert layout of full length, zero past the last row."""
    return send(slices(route.counts), zeros(expert_rows(route), like))


def _scaled(rows: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Rows times a float32 scale each, rounded once."""
    if scale is None:
        return rows
    return (rows.astype(jnp.float32) * scale[:, None]).astype(rows.dtype)
