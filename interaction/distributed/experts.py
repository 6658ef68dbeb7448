"""Feed-forward experts: chooses by shape which kernel runs them, and on which devices."""

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
from interaction.distributed.products import column_dense
from interaction.ops.dense import dense, exact, pad_axis, padded_rows
from interaction.types import Array
from pallas_kernels.expert_exchange import exchange_layer
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.implementation import platform

# Number of tokens up to which reading the chosen experts' weights takes most of the time. On CPUs,
# whose caches hold the weights of a small model, one kernel for any number of tokens takes as long
# and sums in one order.
_FEW = 128
# Tokens times experts up to which a CPU runs all experts on all tokens: loops over a few rows of
# each expert take longer.
_FEW_PRODUCTS = 256
# A device has room for all rows that may arrive, n times its even share, if these take few bytes.
# Otherwise it has room for some even shares, up to some bytes, and takes the rest in further chunks
# of the all-to-all. It always has room for the rows of its tokens, which are one even share.
_FEW_BYTES = 1 << 26
_EVEN_SHARES = 2
_MOST_BYTES = 1 << 30


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """SwiGLU feed-forward (arXiv 2002.05202).

    The weights' columns are split over the mesh axis `tensor`.

    Args:
      x: float[b, t, d].
      gate: float[d, f / devices].
      up: float[d, f / devices].
      down: float[f, d / devices].

    Returns:
      [b, t, d] in x's dtype.
    """
    return column_dense(gather(jax.nn.silu(dense(x, gate)) * dense(x, up), TENSOR), down)


class Experts(NamedTuple):
    """A layer's experts on this device, split over `collectives.EXPERTS`; or those of many layers.

    In a loop over stacked layers XLA would copy each layer's weights out of the stack for a kernel.
    So the kernel takes the complete stack, and the index of the layer's first expert.
    """

    gate: Array  # float[n, d, f]
    up: Array  # float[n, d, f]
    down: Array  # float[n, f, d]
    count: int  # experts of the layer
    first: Array | int = 0  # int32[], index of the layer's first expert

    def places(self, ids: Array) -> Array:
        """Indices int32[...] among all n of the layer's experts int32[...]; -1 for other ids."""
        return jnp.where((ids >= 0) & (ids < self.count), ids + self.first, -1)

    def feed_forward(self, rows: Array, sizes: Array) -> Array:
        """SwiGLU of rows that are sorted by expert.

        Args:
          rows: float[m, d].
          sizes: int32[count], number of rows of each expert.

        Returns:
          [m, d] in the dtype of `rows`.
        """
        if self.count < len(self.gate):
            zeros = jnp.zeros(len(self.gate), sizes.dtype)
            sizes = jax.lax.dynamic_update_slice_in_dim(zeros, sizes, self.first, axis=0)
        gate, up = (grouped_matmul(rows, matrices, sizes) for matrices in (self.gate, self.up))
        return grouped_matmul(_gated(gate, up), self.down, sizes)


def chosen_experts(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    """The weighted sum of the chosen experts of each token, in ascending order of the experts.

    Args:
      x: float[t, d]; on a mesh this device's tokens, the same along `tensor`.
      chosen: int32[t, k], ascending.
      weights: float32[t, k].
      experts: Experts of the layer.

    Returns:
      [t, d] in x's dtype.
    """
    on_cpu = platform() == "cpu"
    few = 0 if on_cpu else _FEW
    if axis_size(*EXPERTS) > 1:
        dispatch = _tokens_everywhere if len(x) * axis_size(EXPERT) <= few else _exchanged
    elif on_cpu and len(x) * experts.count <= _FEW_PRODUCTS:
        dispatch = _every_expert
    else:
        dispatch = _streamed if len(x) <= few else _sorted_by_expert
    return dispatch(x, chosen, weights, experts)


def _streamed(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    return gather_gemv(x, experts.places(chosen), weights, experts.gate, experts.up, experts.down)


def _tokens_everywhere(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    """Few tokens: all of them go to all devices, and no weights move.

    Each device sums the outputs of its experts for each token. The token's home device adds these
    sums in the order of the devices, which is the order of the experts.
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
    """Many tokens: each goes to the devices of its experts and back; `tensor` splits the tokens."""
    t, d = x.shape
    devices, sharing = axis_size(*EXPERTS), axis_size(TENSOR)
    pad = ((0, -t % sharing), (0, 0))
    tokens = (jnp.pad(x, pad), jnp.pad(chosen, pad, constant_values=-1), jnp.pad(weights, pad))
    tokens = jax.tree.map(lambda a: take_part(a, TENSOR, dim=0), tokens)

    def feed_forward(matrices: tuple[Array, Array, Array], rows: Array, sizes: Array) -> Array:
        return Experts(*matrices, experts.count, experts.first).feed_forward(rows, sizes)

    out, _ = exchange_layer(
        feed_forward,
        (experts.gate, experts.up, experts.down),
        *tokens,
        num_experts=devices * experts.count,
        axis=EXPERTS,
        chunk_rows=chunk_rows_for(tokens[1].size, devices, d * x.dtype.itemsize),
    )
    return gather(out, TENSOR, dim=0)[:t]


def chunk_rows_for(pairs: int, devices: int, row_bytes: int) -> int | None:
    """Rows that a device takes in one chunk of the all-to-all; None: any number.

    Args:
      pairs: Pairs of a token and an expert that each device sends.
      devices: Devices that exchange rows.
      row_bytes: Bytes of a row.
    """
    if devices * pairs * row_bytes <= _FEW_BYTES:
        return None
    return max(1, min(_EVEN_SHARES * pairs, _MOST_BYTES // row_bytes))


def _sorted_by_expert(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    t, k = chosen.shape
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    back = jnp.argsort(order)
    sizes = jnp.sum(chosen.reshape(-1, 1) == jnp.arange(experts.count), axis=0, dtype=jnp.int32)
    rows = _permute(jnp.repeat(x, k, axis=0), order, back)
    parts = _permute(experts.feed_forward(rows, sizes), back, order).reshape(t, k, -1)
    return _weigh(parts, weights).astype(x.dtype)


def _every_expert(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
    """Few tokens: products of all of them with all experts, in the tiles of `grouped_matmul`."""
    rows = pad_axis(x, 0, padded_rows(len(x), *experts.gate.shape[1:]))
    rows = jnp.broadcast_to(rows, (experts.count, *rows.shape))

    def multiply(rows: Array, matrices: Array) -> Array:
        mine = jax.lax.dynamic_slice_in_dim(matrices, experts.first, experts.count)
        a, b = rows.astype(jnp.float32), mine.astype(jnp.float32)
        return jnp.matmul(a, b, precision=exact(a, b)).astype(x.dtype)

    hidden = _gated(multiply(rows, experts.gate), multiply(rows, experts.up))
    parts = multiply(hidden, experts.down)
    return _weigh(parts[chosen, jnp.arange(len(x))[:, None]], weights).astype(x.dtype)


def _gated(gate: Array, up: Array) -> Array:
    """The hidden layer of SwiGLU in the dtype of float[...] both, rounded once."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def _weigh(parts: Array, weights: Array) -> Array:
    """Weighted sum float32[t, d] of [t, k, d], one after another as the exchange sums."""
    total = jnp.zeros((parts.shape[0], parts.shape[2]), jnp.float32)
    for at in range(parts.shape[1]):
        total = total + weights[:, at, None] * parts[:, at].astype(jnp.float32)
    return total


@jax.custom_vjp
def _permute(x: Array, order: Array, back: Array) -> Array:
    """Rows of x in another order; with the inverse, `back`, the gradient needs no scatter."""
    return x[order]


def _permute_forward(x: Array, order: Array, back: Array) -> tuple[Array, Array]:
    return x[order], back


def _permute_backward(back: Array, gradient: Array) -> tuple[Array, None, None]:
    return gradient[back], None, None


_permute.defvjp(_permute_forward, _permute_backward)
