"""`dispatch`, `combine` and `exchange_layer`: expert parallelism that never drops a token."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.expert_exchange.differentiable import combine_rows, dispatch_rows, in_chunks
from pallas_kernels.expert_exchange.ragged import Axis
from pallas_kernels.expert_exchange.routing import (
    Route,
    local_sizes,
    make_route,
    weights_by_expert,
)
from pallas_kernels.expert_exchange.validation import (
    axis_size,
    check_combine,
    check_dispatch,
    check_weights,
)
from pallas_kernels.varying import vary, varying


def cheaper_dispatch(
    tokens: int, dim: int, itemsize: int, experts_per_token: int, num_experts: int, devices: int
) -> str:
    """The method of `dispatch` that brings fewer bytes to a device.

    An all-gather brings each token of every other device once, with its pairs: (n - 1) * tokens *
    (dim * itemsize + 4 * k) bytes for any load. An all-to-all brings one row for each pair of a
    token and an expert of the device, so two rows if the token chose two experts of the device.
    Under an even load that is (n - 1) / n * tokens * k * dim * itemsize bytes; the device of a
    popular expert receives more. Both gather the counts. With wide rows, the all-gather is cheaper
    on fewer than k devices.

    Args:
      tokens: Tokens of a device, t.
      dim: Width of a token.
      itemsize: Bytes of a number.
      experts_per_token: Experts that a token chooses, k.
      num_experts: Number of experts; a token chooses each at most once.
      devices: Devices on the axis, n.

    Returns:
      "all_gather" or "all_to_all".
    """
    others = devices - 1
    chosen = min(experts_per_token, num_experts)
    gather = others * tokens * (dim * itemsize + 4 * chosen)
    all_to_all = others * tokens * chosen * dim * itemsize / devices
    return "all_gather" if gather <= all_to_all else "all_to_all"


def dispatch(
    x: jax.Array,
    experts: jax.Array,
    *,
    num_experts: int,
    axis: Axis,
    method: str | None = None,
) -> tuple[jax.Array, jax.Array, Route]:
    """Sends each token to the devices of the experts that it chose.

    For use inside `jax.shard_map`. The n devices on the axis own contiguous ranges of
    num_experts / n experts. This is the dispatch of expert parallelism (GShard, arXiv:2006.16668)
    without an expert capacity: no token is dropped, as in MegaBlocks (arXiv:2211.15841).

    The rows do not depend, bit for bit, on the method. They are sorted by token, so an expert's
    rows do not depend on how many devices share the same tokens. Differentiable in x; the gradient
    sums a token's experts in ascending order in float32 for any number of devices.

    Args:
      x: bfloat16 or float32 [t, d], this device's tokens; all devices have the same t.
      experts: int32[t, k], the experts that each token chose. An id outside 0 .. num_experts - 1
        chooses no expert. A repeated id counts once; its weights are added in `combine`.
      num_experts: Experts on all devices of the axis together.
      axis: The mesh axis that the experts are split over, or several axes that are used as one.
      method: "all_gather" (every device gets all tokens and selects its own), "all_to_all" (only
        the chosen rows are sent), or None for the choice of `cheaper_dispatch`.

    Returns:
      rows: [n * t * min(k, num_experts / n), d] in x's dtype, enough rows for any choice: sorted by
        local expert, then token, zero past the last row.
      group_sizes: int32[num_experts / n], the rows of each local expert.
      route: For `combine`.

    Raises:
      ValueError: A shape, a dtype, the axis or the method does not fit.
    """
    x, experts = jnp.asarray(x), jnp.asarray(experts)
    devices = axis_size(axis)
    check_dispatch(x, experts, num_experts, devices, method)
    with jax.named_scope("dispatch"):
        route = make_route(
            experts, num_experts, axis, method or _cheaper(x, experts, num_experts, devices)
        )
        rows = dispatch_rows(x, route, axis) if experts.size else x[:0]
        return rows, local_sizes(route.counts, axis), route


def combine(y: jax.Array, weights: jax.Array, route: Route, *, axis: Axis) -> jax.Array:
    """Sends the experts' rows back to their tokens and sums them.

    For use inside `jax.shard_map`, after `dispatch`. Only the chosen rows are sent, by an
    all-to-all. Each token's experts are summed on the token's device, in ascending order in
    float32: the result does not depend, bit for bit, on the other tokens or on the number of
    devices. Differentiable in y and weights; the gradients of the rows are sent by the method of
    the dispatch.

    Args:
      y: bfloat16 or float32 [r, d], one row for each row of `dispatch`, in the same order; rows
        past the last are not read.
      weights: float32[t, k], the router's weights of this device's tokens.
      route: From `dispatch`.
      axis: The mesh axis that the experts are split over.

    Returns:
      [t, d] in y's dtype, this device's tokens.

    Raises:
      ValueError: A shape, a dtype or the axis does not fit.
    """
    y, weights = jnp.asarray(y), jnp.asarray(weights)
    check_combine(y, weights, route, axis_size(axis))
    if not weights.size:
        return jnp.zeros((len(weights), y.shape[1]), y.dtype)
    with jax.named_scope("combine"):
        return combine_rows(y, weights_by_expert(weights, route), route, axis)


def exchange_layer(
    ffn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,  # noqa: ANN401
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    *,
    num_experts: int,
    axis: Axis,
    chunk_rows: int | None = None,
    method: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs `dispatch`, the experts and `combine`, optionally as a chunked all-to-all.

    The result of `dispatch` has the size of the worst case, in which all tokens choose the experts
    of one device: n times an even load. Operations other than the grouped products (allocation,
    activation functions, layout changes) process all of it. With `chunk_rows`, a device receives
    its rows in chunks of that many rows. Every device runs as many chunks as the busiest device of
    the mesh needs, one if no device has more than `chunk_rows` rows; no token is dropped. The
    backward pass computes the experts of each chunk again.

    The result does not depend, bit for bit, on `chunk_rows`. The gradients of the experts' weights
    do, because they are sums over tokens.

    Args:
      ffn: The local experts. Takes params, rows [r, d] in x's dtype and group sizes
        int32[num_experts / n]; returns [r, d] in x's dtype. In a chunk, the input rows past the sum
        of the group sizes, and the gradients of the output rows there, are undefined and may be
        NaN: they must not reach the gradients of params (`grouped_matmul` ensures this). The output
        rows there are ignored. To be differentiated, ffn must not close over traced arrays.
      params: A tree of bfloat16 or float32 arrays, with respect to which ffn is differentiated.
        Their gradients are added over the chunks in the dtype of each array.
      x: bfloat16 or float32 [t, d], this device's tokens, see `dispatch`.
      experts: int32[t, k], the experts that each token chose.
      weights: float32[t, k], the router's weights.
      num_experts: Experts on all devices of the axis together.
      axis: The mesh axis that the experts are split over.
      chunk_rows: Rows of a chunk; None for one chunk of the worst case's size.
      method: See `dispatch`.

    Returns:
      [t, d] in x's dtype, and int32[num_experts / n], the rows of each local expert.

    Raises:
      ValueError: A shape, a dtype, the axis, the method or `chunk_rows` does not fit.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(
            f"exchange_layer: chunk_rows={chunk_rows}, wanted at least 1 row, or None for one chunk"
        )
    x, experts, weights = jnp.asarray(x), jnp.asarray(experts), jnp.asarray(weights)
    devices = axis_size(axis)
    check_dispatch(x, experts, num_experts, devices, method)
    worst = devices * len(x) * min(experts.shape[1], num_experts // devices)
    if chunk_rows is None or chunk_rows >= worst:
        rows, sizes, route = dispatch(x, experts, num_experts=num_experts, axis=axis, method=method)
        return combine(ffn(params, rows, sizes), weights, route, axis=axis), sizes
    check_weights(weights, experts.shape)
    method = method or _cheaper(x, experts, num_experts, devices)
    route = make_route(experts, num_experts, axis, method)
    # The carry of the loop over chunks must vary over the same mesh axes in every iteration.
    axes = varying(x, weights, *jax.tree.leaves((params, route)))
    axes |= {axis} if isinstance(axis, str) else frozenset(axis)
    x, weights, route = jax.tree.map(lambda a: vary(a, axes), (x, weights, route))
    out = in_chunks(ffn, axis, chunk_rows, params, x, weights_by_expert(weights, route), route)
    return out, local_sizes(route.counts, axis)


def _cheaper(x: jax.Array, experts: jax.Array, num_experts: int, devices: int) -> str:
    tokens, choices = experts.shape
    return cheaper_dispatch(tokens, x.shape[1], x.dtype.itemsize, choices, num_experts, devices)
