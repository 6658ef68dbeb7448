"""Checks of the arguments of `dispatch`, `combine` and `exchange_layer`."""

import jax
import jax.numpy as jnp

from pallas_kernels.expert_exchange.ragged import Axis
from pallas_kernels.expert_exchange.routing import Route, expert_rows

METHODS = ("all_gather", "all_to_all")
_FLOATS = ("bfloat16", "float32")


def axis_size(axis: Axis) -> int:
    """Number of devices on a mesh axis, or on several axes that are used as one.

    Raises:
      ValueError: The axis is not part of the surrounding `jax.shard_map`.
    """
    try:
        return jax.lax.axis_size(axis)
    except NameError as error:
        raise ValueError(
            f"axis={axis!r} is no mesh axis here; call this inside jax.shard_map over a mesh "
            "that has it"
        ) from error


def check_dispatch(
    x: jax.Array, experts: jax.Array, num_experts: int, devices: int, method: str | None
) -> None:
    """Checks the arguments of `dispatch`.

    Args:
      x: Tokens; must be bfloat16 or float32 [t, d].
      experts: Chosen experts; must be int32[t, k].
      num_experts: Experts on all devices; must be a positive multiple of `devices`.
      devices: Devices on the axis.
      method: Must be one of `METHODS` or None.

    Raises:
      ValueError: An argument does not fit.
    """
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


def check_combine(y: jax.Array, weights: jax.Array, route: Route, devices: int) -> None:
    """Checks the arguments of `combine`.

    Args:
      y: Rows of the experts; must be bfloat16 or float32 [r, d], with r the rows of the dispatch.
      weights: Router weights; must be float32[t, k].
      route: The route of the dispatch.
      devices: Devices on the axis; must be those of the dispatch.

    Raises:
      ValueError: An argument does not fit.
    """
    if devices != len(route.counts):
        raise ValueError(
            f"combine: the axis has {devices} devices, the route is of {len(route.counts)}; "
            "pass the axis of its dispatch"
        )
    rows = expert_rows(route)
    if y.ndim != 2 or len(y) != rows or y.dtype.name not in _FLOATS:
        raise ValueError(
            f"combine: y is {y.dtype}{y.shape}, wanted bfloat16 or float32 [{rows}, d], "
            "one row for each row of dispatch"
        )
    check_weights(weights, route.slots.shape)


def check_weights(weights: jax.Array, shape: tuple[int, ...]) -> None:
    """Checks the router weights.

    Args:
      weights: Must be float32[t, k].
      shape: The wanted shape, (t, k).

    Raises:
      ValueError: The shape or the dtype differs.
    """
    if weights.shape != shape or weights.dtype != jnp.float32:
        raise ValueError(
            f"weights are {weights.dtype}{weights.shape}, wanted float32{shape}, one per choice"
        )


def check_ffn_rows(y: jax.Array, chunk_rows: int, x: jax.Array) -> None:
    """Checks what the experts return for one chunk.

    Args:
      y: The result of `ffn`; must be [chunk_rows, d] in x's dtype.
      chunk_rows: Rows of a chunk.
      x: The tokens, bfloat16 or float32 [t, d].

    Raises:
      ValueError: The shape or the dtype differs.
    """
    if y.shape != (chunk_rows, x.shape[1]) or y.dtype != x.dtype:
        raise ValueError(
            f"exchange_layer: ffn returned {y.dtype}{y.shape}, wanted {x.dtype}"
            f"{(chunk_rows, x.shape[1])}, one row for each row that it takes"
        )
