"""`dispatch` and `combine`: validation, routing, the choice of the collective, gradients."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
from pallas_kernels.varying import vary, varying

METHODS = ("all_gather", "all_to_all")


class Route(NamedTuple):
    """Where the rows of one `dispatch` went; `combine` brings them back.

    Home rows are this device's (token, expert) pairs, sorted by expert, then token.
    """

    counts: jax.Array  # int32[n, num_experts], rows that each device sends to each expert
    pairs: jax.Array  # int32[h], token * k + choice of each home row; past the last: any pair
    experts: jax.Array  # int32[t, k], each token's choices in ascending order
    order: jax.Array  # int32[t, k], their places in the caller's order
    slots: jax.Array  # int32[t, k], their home rows; h where there is none
    tokens: jax.Array | None  # int32[n * h], the token, of all n * t, of all devices' home rows
    # one after another; None by all-to-all


def cheaper_dispatch(
    tokens: int, dim: int, itemsize: int, experts_per_token: int, num_experts: int, axis_size: int
) -> str:
    """The method of `dispatch` that brings fewer bytes to a device.

    An all-gather brings every other device's tokens, each once, and their pairs: (n - 1) *
    tokens * (dim * itemsize + 4 * k) bytes, however skewed the load. An all-to-all brings a row
    for each pair of a token and an expert here, twice if the token chose two experts here:
    under an even load (n - 1) / n * tokens * k * dim * itemsize bytes, and more on the device
    of a popular expert. Both gather the counts. So, with wide rows, the all-gather pays on fewer
    than k devices.

    Args:
      tokens: Tokens of a device, t.
      dim: Width of a token.
      itemsize: Bytes of a number.
      experts_per_token: Experts that a token chooses, k.
      num_experts: Number of experts; a token chooses each at most once.
      axis_size: Devices on the axis, n.

    Returns:
      "all_gather" or "all_to_all".
    """
    others = axis_size - 1
    chosen = min(experts_per_token, num_experts)
    gather = others * tokens * (dim * itemsize + 4 * chosen)
    all_to_all = others * tokens * chosen * dim * itemsize / axis_size
    return "all_gather" if gather <= all_to_all else "all_to_all"


def dispatch(
    x: jax.Array,
    experts: jax.Array,
    *,
    num_experts: int,
    axis: Axis,
    method: str | None = None,
) -> tuple[jax.Array, jax.Array, Route]:
    """Brings each token to the devices of the experts it chose; no token is ever dropped.

    For use inside `jax.shard_map`. The n devices on the axis own contiguous ranges of
    num_experts / n experts. The rows do not depend, bit for bit, on the method, and an expert's
    rows not on the number of devices that share the same tokens in the same order: they are
    sorted by token. Differentiable in x; the gradient sums a token's experts in ascending order
    in float32, wherever they are.

    Args:
      x: bfloat16 or float32 [t, d], this device's tokens; any number, the same on all devices.
      experts: int32[t, k], the experts each token chose; an id outside 0 .. num_experts - 1
        chooses nobody, one that stands twice chooses once (its weights add up in `combine`).
      num_experts: Experts on all devices of the axis together.
      axis: The mesh axis that the experts are split over, or several as one.
      method: "all_gather" (tokens go everywhere, each device picks its own), "all_to_all" (only
        chosen rows go), or None for `cheaper_dispatch`.

    Returns:
      rows: [n * t * min(k, num_experts / n), d] in x's dtype, enough for any choice: sorted by
        local expert, then token, zero past the last row.
      group_sizes: int32[num_experts / n], the rows of each local expert.
      route: For `combine`.

    Raises:
      ValueError: A shape, a dtype, the axis or the method does not fit.
    """
    x, experts = jnp.asarray(x), jnp.asarray(experts)
    devices = _axis_size(axis)
    _check_dispatch(x, experts, num_experts, devices, method)
    with jax.named_scope("dispatch"):
        route = _route(
            experts, num_experts, axis, method or _cheaper(x, experts, num_experts, axis)
        )
        rows = _dispatch(x, route, axis) if experts.size else x[:0]
        return rows, _local_sizes(route.counts, axis), route


def combine(y: jax.Array, weights: jax.Array, route: Route, *, axis: Axis) -> jax.Array:
    """Brings the experts' rows back to their tokens and sums them.

    For use inside `jax.shard_map`, after `dispatch`. Only chosen rows go, by an all-to-all. On
    its home device, a token's experts are summed in ascending order in float32: the result does
    not depend, bit for bit, on the other tokens or on the number of devices. Differentiable in
    y and weights; the rows' gradients go out by the method of the dispatch.

    Args:
      y: bfloat16 or float32 [r, d], one row for each row of `dispatch`, in its order; rows past
        the last are not read.
      weights: float32[t, k], the router's weights of this device's tokens.
      route: From `dispatch`.
      axis: The mesh axis that the experts are split over.

    Returns:
      [t, d] in y's dtype, this device's tokens.

    Raises:
      ValueError: A shape, a dtype or the axis does not fit.
    """
    y, weights = jnp.asarray(y), jnp.asarray(weights)
    _check_combine(y, weights, route, _axis_size(axis))
    if not weights.size:
        return jnp.zeros((len(weights), y.shape[1]), y.dtype)
    with jax.named_scope("combine"):
        return _combine(y, _by_expert(weights, route), route, axis)


def exchange_layer(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,  # noqa: ANN401
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    *,
    num_experts: int,
    axis: Axis,
    room: int | None = None,
    method: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`dispatch`, the experts, `combine`, with room for fewer rows than may come.

    `dispatch` has room for the worst case, that all tokens choose one device's experts, which is
    n times an even load: whatever is not a product (allocation, activation functions, relayouts)
    runs over all of it. With `room`, a device takes its rows in rounds of that many, as many
    rounds as the busiest device of the mesh needs: one under any load that fits, and still no
    token is dropped. The backward pass computes a round's experts again. A token's bits do not
    depend on the room; the gradients of the experts' weights, which are sums over tokens, do.

    Args:
      ffn: The local experts: params, rows [r, d] and group sizes int32[num_experts / n] to
        [r, d] in x's dtype. What it makes of rows past the last is not read. Those rows, and
        what comes back to them as gradients, hold anything: params may get nothing of them, as
        with `grouped_matmul`. To be differentiated it must not close over traced arrays.
      params: Arrays, bfloat16 or float32, that ffn is differentiated by; their gradients are
        added up round by round in their own dtype.
      x: [t, d], as `dispatch` takes it.
      experts: int32[t, k].
      weights: float32[t, k].
      num_experts: Experts on all devices of the axis together.
      axis: The mesh axis that the experts are split over.
      room: Rows of a round; None for as many as may come.
      method: As `dispatch` takes it.

    Returns:
      [t, d] in x's dtype, and int32[num_experts / n], the rows of each local expert.

    Raises:
      ValueError: A shape, a dtype, the axis, the method or the room does not fit.
    """
    if room is not None and room < 1:
        raise ValueError(f"exchange_layer: room={room}, wanted at least 1 row, or None")
    x, experts, weights = jnp.asarray(x), jnp.asarray(experts), jnp.asarray(weights)
    devices = _axis_size(axis)
    _check_dispatch(x, experts, num_experts, devices, method)
    worst = devices * len(x) * min(experts.shape[1], num_experts // devices)
    if room is None or room >= worst:
        rows, sizes, route = dispatch(x, experts, num_experts=num_experts, axis=axis, method=method)
        return combine(ffn(params, rows, sizes), weights, route, axis=axis), sizes
    _check_weights(weights, experts.shape)
    route = _route(experts, num_experts, axis, method or _cheaper(x, experts, num_experts, axis))
    # What a loop carries varies over the same axes in all rounds.
    axes = varying(x, weights, *jax.tree.leaves((params, route)))
    axes |= {axis} if isinstance(axis, str) else frozenset(axis)
    x, weights, route = jax.tree.map(lambda a: vary(a, axes), (x, weights, route))
    out = _in_rounds(ffn, axis, room, params, x, _by_expert(weights, route), route)
    return out, _local_sizes(route.counts, axis)


def _cheaper(x: jax.Array, experts: jax.Array, num_experts: int, axis: Axis) -> str:
    tokens, choices = experts.shape
    return cheaper_dispatch(
        tokens, x.shape[1], x.dtype.itemsize, choices, num_experts, _axis_size(axis)
    )


def _route(experts: jax.Array, num_experts: int, axis: Axis, method: str) -> Route:
    """Sorts this device's pairs by expert and exchanges the counts."""
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


def _by_expert(weights: jax.Array, route: Route) -> jax.Array:
    """Weights in the order of the route's experts; of one that stands twice the first has both."""
    weights = jnp.take_along_axis(weights, route.order, axis=1)
    same = route.experts[:, :, None] == route.experts[:, None, :]
    weights = jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=2)
    return jnp.where(route.slots < len(route.pairs), weights, 0.0)


def _local_sizes(counts: jax.Array, axis: Axis) -> jax.Array:
    """Rows of each of this device's experts, of counts int32[n, num_experts]."""
    sizes = jnp.sum(counts, axis=0).reshape(len(counts), -1)
    return sizes[jax.lax.axis_index(axis)]


def _expert_rows(route: Route) -> int:
    """Length of the expert layout: enough for any choice of the tokens."""
    devices, num_experts = route.counts.shape
    tokens, choices = route.slots.shape
    return devices * tokens * min(choices, num_experts // devices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dispatch(x: jax.Array, route: Route, axis: Axis) -> jax.Array:
    return _whole(_sender(x, None, route, axis), x, route)


def _dispatch_fwd(x: jax.Array, route: Route, axis: Axis) -> tuple[jax.Array, Route]:
    return _dispatch(x, route, axis), route


def _dispatch_bwd(axis: Axis, route: Route, d_rows: jax.Array) -> tuple[jax.Array, None]:
    return _sum_all(_bring_home(d_rows, route, axis), route), None


_dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _combine(y: jax.Array, weights: jax.Array, route: Route, axis: Axis) -> jax.Array:
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
    d_y = _whole(_sender(d_out, weights, route, axis), d_out, route)
    return d_y, _products(d_out, home, route), None


_combine.defvjp(_combine_fwd, _combine_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_rounds(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    axis: Axis,
    room: int,
    params: Any,  # noqa: ANN401
    x: jax.Array,
    weights: jax.Array,
    route: Route,
) -> jax.Array:
    """Dispatch, experts and combine, `room` rows after `room` rows of the expert layout."""
    send = _sender(x, None, route, axis)

    def take(number: jax.Array, home: jax.Array) -> jax.Array:
        part, sizes = _round(number, room, route, axis)
        y = ffn(params, send(part, blank(room, x)), sizes)
        _check_rows(y, room, x)
        return to_home(y, part, home, axis=axis)

    home = jax.lax.fori_loop(0, _rounds(route, room, axis), take, blank(len(route.pairs), x))
    return _sum_choices(home, weights, route.slots)


def _in_rounds_fwd(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    axis: Axis,
    room: int,
    *operands: Any,  # noqa: ANN401
) -> tuple[jax.Array, tuple]:
    return _in_rounds(ffn, axis, room, *operands), operands


def _in_rounds_bwd(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    axis: Axis,
    room: int,
    saved: tuple,
    d_out: jax.Array,
) -> tuple[Any, jax.Array, jax.Array, None]:
    params, x, weights, route = saved
    send, send_gradient = _sender(x, None, route, axis), _sender(d_out, weights, route, axis)

    def take(number: jax.Array, carry: tuple) -> tuple:
        home, d_home, d_params = carry
        part, sizes = _round(number, room, route, axis)
        rows = send(part, blank(room, x))
        y, pull = jax.vjp(lambda params, rows: ffn(params, rows, sizes), params, rows)
        more, d_rows = pull(send_gradient(part, blank(room, d_out)))
        return (
            to_home(y, part, home, axis=axis),
            to_home(d_rows, part, d_home, axis=axis),
            jax.tree.map(jnp.add, d_params, more),
        )

    nothing = blank(len(route.pairs), d_out), blank(len(route.pairs), x)
    home, d_home, d_params = jax.lax.fori_loop(
        0, _rounds(route, room, axis), take, (*nothing, jax.tree.map(jnp.zeros_like, params))
    )
    return d_params, _sum_all(d_home, route), _products(d_out, home, route), None


_in_rounds.defvjp(_in_rounds_fwd, _in_rounds_bwd)


def _rounds(route: Route, room: int, axis: Axis) -> jax.Array:
    """Rounds that the busiest device needs, the same on all devices of the mesh.

    Were they not the same along other axes than that of the experts, devices would meet in
    different collectives.
    """
    mine = jnp.sum(_local_sizes(route.counts, axis))
    everywhere = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    largest = jax.lax.pmax(vary(mine, frozenset(everywhere)), everywhere)
    return (largest + room - 1) // room


def _round(number: jax.Array, room: int, route: Route, axis: Axis) -> tuple[Slices, jax.Array]:
    """The rows of a round, and how many each of this device's experts has."""
    part = window(slices(route.counts), number * room, room)
    return part, _local_sizes(part.sizes, axis)


def _products(d_out: jax.Array, home: jax.Array, route: Route) -> jax.Array:
    """The gradient of the weights: float32[t, k]."""
    wide = d_out.astype(jnp.float32)
    return jnp.stack([jnp.sum(wide * row, axis=1) for row in _choices(home, route.slots)], axis=1)


def _bring_home(rows: jax.Array, route: Route, axis: Axis) -> jax.Array:
    """The expert layout of the worst case as a home layout, zero past the last row."""
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
    """Sends tokens [t, d], times float32 weights [t, k] if any, as `ragged.to_experts` does."""
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


def _whole(
    send: Callable[[Slices, jax.Array], jax.Array], like: jax.Array, route: Route
) -> jax.Array:
    """All that `send` sends, in the expert layout of the worst case, zero past the last row."""
    return send(slices(route.counts), zeros(_expert_rows(route), like))


def _scaled(rows: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Rows times a float32 scale each, rounded once."""
    if scale is None:
        return rows
    return (rows.astype(jnp.float32) * scale[:, None]).astype(rows.dtype)


def _axis_size(axis: Axis) -> int:
    try:
        return jax.lax.axis_size(axis)
    except NameError as error:
        raise ValueError(
            f"axis={axis!r} is no mesh axis here; call this inside jax.shard_map over a mesh "
            "that has it"
        ) from error


_FLOATS = ("bfloat16", "float32")


def _check_dispatch(
    x: jax.Array, experts: jax.Array, num_experts: int, devices: int, method: str | None
) -> None:
    if x.ndim != 2 or x.dtype.name not in _FLOATS:
        raise ValueError(f"dispatch: x is {x.dtype}{x.shape}, wanted bfloat16 or float32 [t, d]")
    if experts.ndim != 2 or len(experts) != len(x):
        raise ValueError(f"dispatch: experts {experts.shape}, wanted [{len(x)}, k] for x {x.shape}")
    if experts.dtype != jnp.int32:
        raise ValueError(
            f"dispatch: experts are {experts.dtype}, wanted int32; cast with astype(jnp.int32)"
        )
    if num_experts < 1 or num_experts % devices:
        raise ValueError(
            f"dispatch: num_experts={num_experts}, wanted a positive multiple of the axis's "
            f"{devices} devices"
        )
    if method is not None and method not in METHODS:
        raise ValueError(f"dispatch: method={method!r}, wanted one of {', '.join(METHODS)} or None")


def _check_combine(y: jax.Array, weights: jax.Array, route: Route, devices: int) -> None:
    if devices != len(route.counts):
        raise ValueError(
            f"combine: the axis has {devices} devices, the route is of {len(route.counts)}; "
            "pass the axis of its dispatch"
        )
    if y.ndim != 2 or len(y) != _expert_rows(route) or y.dtype.name not in _FLOATS:
        raise ValueError(
            f"combine: y is {y.dtype}{y.shape}, wanted bfloat16 or float32 "
            f"[{_expert_rows(route)}, d], a row for each of dispatch"
        )
    _check_weights(weights, route.slots.shape)


def _check_rows(y: jax.Array, room: int, x: jax.Array) -> None:
    if y.shape != (room, x.shape[1]) or y.dtype != x.dtype:
        raise ValueError(
            f"exchange_layer: ffn returned {y.dtype}{y.shape}, wanted {x.dtype}"
            f"{(room, x.shape[1])}, a row for each that it was given"
        )


def _check_weights(weights: jax.Array, shape: tuple[int, ...]) -> None:
    if weights.shape != shape or weights.dtype != jnp.float32:
        raise ValueError(
            f"weights are {weights.dtype}{weights.shape}, wanted float32{shape}, one a choice"
        )
