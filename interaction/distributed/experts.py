"""Feed-forward experts: which kernel runs them, and on which devices, is decided here, by shape."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from interaction.distributed.collectives import (
    EXPERT,
    EXPERTS,
    TENSOR,
    axis_index,
    axis_size,
    gather,
    take_part,
)
from interaction.distributed.products import column_dense, dense
from interaction.types import Array
from pallas_kernels.expert_exchange import exchange_layer
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.implementation import platform

# Tokens up to which reading the chosen experts' weights is what costs. On CPUs, where the weights
# of a small model are in its cache, sorting the tokens pays earlier.
_FEW = 128
_FEW_ON_CPU = 32
# A device has room for as many rows as may come, n times its even share, where those are few bytes;
# otherwise for some even shares, within some bytes, and takes the rest in further chunks. The rows
# of its own tokens, which are as many as one even share, it holds whole.
_FEW_BYTES = 1 << 26
_EVEN_SHARES = 2
_MOST_BYTES = 1 << 30


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """SwiGLU feed-forward (arXiv 2002.05202): x [b, t, d], gate and up [d, f], down [f, d].

    The weights' columns are split over the mesh axis `tensor`.
    """
    return column_dense(gather(jax.nn.silu(dense(x, gate)) * dense(x, up), TENSOR), down)


class Experts(NamedTuple):
    """A layer's experts on this device, split over `collectives.EXPERTS`; or those of many layers.

    A kernel that is called in a loop over stacked layers would have each layer's weights copied
    out of the stack for it. It takes the whole stack instead, and which of them are meant.
    """

    gate: Array  # [n, d, f]
    up: Array  # [n, d, f]
    down: Array  # [n, f, d]
    count: int  # experts of the layer
    first: Array | int = 0  # int32[], where they begin

    def places(self, ids: Array) -> Array:
        """Where the layer's experts int32[...] stand among all; -1 for what is none of them."""
        return jnp.where((ids >= 0) & (ids < self.count), ids + self.first, -1)

    def feed(self, rows: Array, sizes: Array) -> Array:
        """SwiGLU of rows [m, d] sorted by expert, int32[count] of them each."""
        if self.count < len(self.gate):
            nobody = jnp.zeros(len(self.gate), sizes.dtype)
            sizes = jax.lax.dynamic_update_slice_in_dim(nobody, sizes, self.first, axis=0)
        hidden = jax.nn.silu(grouped_matmul(rows, self.gate, sizes))
        return grouped_matmul(hidden * grouped_matmul(rows, self.up, sizes), self.down, sizes)


def chosen_experts(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    """Each token through the experts it chose, weighted and summed in ascending order.

    Args:
      x: [t, d]; on a mesh this device's tokens, the same along `tensor`.
      chosen: int32[t, k], ascending.
      weights: float32[t, k].
      experts: The layer's.

    Returns:
      [t, d] in x's dtype.
    """
    few = _FEW_ON_CPU if platform() == "cpu" else _FEW
    if axis_size(*EXPERTS) > 1:
        dispatch = _tokens_everywhere if len(x) * axis_size(EXPERT) <= few else _exchanged
    else:
        dispatch = _streamed if len(x) <= few else _sorted_by_expert
    return dispatch(x, chosen, weights, experts)


def _streamed(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    return gather_gemv(x, experts.places(chosen), weights, experts.gate, experts.up, experts.down)


def _tokens_everywhere(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    """Few tokens: all of them go to all devices, whose experts stay where they are.

    A device sums its own experts' parts of each token; at home these are summed in the order of
    the devices, which is that of the experts.
    """
    t, d = x.shape
    homes = axis_size(EXPERT)
    x, chosen, weights = (gather(a, EXPERT, dim=0) for a in (x, chosen, weights))
    mine = chosen - axis_index(*EXPERTS) * experts.count
    parts = _streamed(x, mine, weights, experts).reshape(homes, t, d)
    if homes > 1:
        with jax.named_scope("combine"):
            parts = jax.lax.all_to_all(parts, EXPERT, split_axis=0, concat_axis=0)
    parts = gather(parts[:, None], TENSOR, dim=1).reshape(-1, t, d)
    total = parts[0].astype(jnp.float32)
    for part in parts[1:]:
        total = total + part.astype(jnp.float32)
    return total.astype(x.dtype)


def _exchanged(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    """Many tokens: each goes to the devices of its experts and back; along `tensor` they share."""
    t, d = x.shape
    devices, sharing = axis_size(*EXPERTS), axis_size(TENSOR)
    pad = ((0, -t % sharing), (0, 0))
    tokens = (jnp.pad(x, pad), jnp.pad(chosen, pad, constant_values=-1), jnp.pad(weights, pad))
    tokens = jax.tree.map(lambda a: take_part(a, TENSOR, dim=0), tokens)

    def feed(matrices: tuple[Array, Array, Array], rows: Array, sizes: Array) -> Array:
        return Experts(*matrices, experts.count, experts.first).feed(rows, sizes)

    out, _ = exchange_layer(
        feed,
        (experts.gate, experts.up, experts.down),
        *tokens,
        num_experts=devices * experts.count,
        axis=EXPERTS,
        chunk_rows=chunk_rows_for(tokens[1].size, devices, d * x.dtype.itemsize),
    )
    return gather(out, TENSOR, dim=0)[:t]


def chunk_rows_for(pairs: int, devices: int, row_bytes: int) -> int | None:
    """Rows that a device takes at a time, None for any number, where each device sends `pairs`."""
    if devices * pairs * row_bytes <= _FEW_BYTES:
        return None
    return max(1, min(_EVEN_SHARES * pairs, _MOST_BYTES // row_bytes))


def _sorted_by_expert(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    t, k = chosen.shape
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    back = jnp.argsort(order)
    sizes = jnp.sum(chosen.reshape(-1, 1) == jnp.arange(experts.count), axis=0, dtype=jnp.int32)
    rows = _permute(jnp.repeat(x, k, axis=0), order, back)
    parts = _permute(experts.feed(rows, sizes), back, order).reshape(t, k, -1)
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
