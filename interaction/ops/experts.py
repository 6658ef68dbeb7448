"""Feed-forward experts: which kernel runs them is decided here, by shape."""

import jax
import jax.numpy as jnp

from interaction.ops.dense import dense
from interaction.types import Array
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.implementation import platform

# Tokens up to which reading the chosen experts' weights is what costs. On CPUs, where the weights
# of a small model are in its cache, sorting the tokens pays earlier.
_FEW = 128
_FEW_ON_CPU = 32


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """SwiGLU feed-forward (arXiv 2002.05202): x [b, t, d], gate and up [d, f], down [f, d]."""
    return dense(jax.nn.silu(dense(x, gate)) * dense(x, up), down)


def chosen_experts(
    x: Array, chosen: Array, weights: Array, gate: Array, up: Array, down: Array
) -> Array:
    """Each token through the experts it chose, weighted and summed in ascending order.

    Args:
      x: [t, d].
      chosen: int32[t, k], ascending.
      weights: float32[t, k].
      gate: [e, d, f].
      up: [e, d, f].
      down: [e, f, d].

    Returns:
      [t, d] in x's dtype.
    """
    few = _FEW_ON_CPU if platform() == "cpu" else _FEW
    dispatch = gather_gemv if len(x) <= few else _sorted_by_expert
    return dispatch(x, chosen, weights, gate, up, down)


def _sorted_by_expert(
    x: Array, chosen: Array, weights: Array, gate: Array, up: Array, down: Array
) -> Array:
    t, k = chosen.shape
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    back = jnp.argsort(order)
    sizes = jnp.sum(chosen.reshape(-1, 1) == jnp.arange(len(gate)), axis=0, dtype=jnp.int32)
    rows = _permute(jnp.repeat(x, k, axis=0), order, back)
    hidden = jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)
    parts = _permute(grouped_matmul(hidden, down, sizes), back, order).reshape(t, k, -1)
    return jnp.sum(parts.astype(jnp.float32) * weights[..., None], axis=1).astype(x.dtype)


@jax.custom_vjp
def _permute(x: Array, order: Array, back: Array) -> Array:
    """Rows of x in another order; `back` undoes it, which saves the gradient a scatter."""
    return x[order]


def _permute_forward(x: Array, order: Array, back: Array) -> tuple[Array, Array]:
    return x[order], back


def _permute_backward(back: Array, gradient: Array) -> tuple[Array, None, None]:
    return gradient[back], None, None


_permute.defvjp(_permute_forward, _permute_backward)
