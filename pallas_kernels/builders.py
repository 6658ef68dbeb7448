"""Builders of the programs that `compile_report` compiles: our kernels and the public ones.

A builder returns a function and the shapes of its operands. It runs in the process that compiles,
under the mesh of the chip.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from pallas_kernels import shapes
from pallas_kernels.gather_gemv import Scales, gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul

Built = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its operands' shapes
Tile = tuple[int, int, int]  # rows, contraction and columns of a block
Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _shape(shape: Sequence[int], dtype: jax.typing.DTypeLike) -> Any:  # noqa: ANN401
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _layer_operands(preset: str, tokens: int, dtype: str) -> tuple[Any, ...]:
    layer = shapes.PRESETS[preset]
    d, e, f, k = layer.dim, layer.experts, layer.ffn, layer.experts_per_token
    return (
        _shape((tokens, d), jnp.bfloat16),
        _shape((tokens, k), jnp.int32),
        _shape((tokens, k), jnp.float32),
        _shape((e, d, f), dtype),
        _shape((e, d, f), dtype),
        _shape((e, f, d), dtype),
    )


def build_gather_gemv(preset: str, tokens: int, dtype: str) -> Built:
    """Builds our fused layer.

    Args:
      preset: One of `shapes.PRESETS`.
      tokens: Tokens of the step.
      dtype: Dtype of the weights; 8-bit weights have scales as a further operand.
    """
    layer = shapes.PRESETS[preset]
    operands = _layer_operands(preset, tokens, dtype)
    if jnp.dtype(dtype).itemsize > 1:
        return functools.partial(gather_gemv, implementation="tpu"), operands
    hidden = _shape((layer.experts, layer.ffn), jnp.float32)
    scales = Scales(hidden, hidden, _shape((layer.experts, layer.dim), jnp.float32))

    def run(*operands: Any) -> jax.Array:  # noqa: ANN401
        *layer_operands, scales = operands
        return gather_gemv(*layer_operands, scales=scales, implementation="tpu")

    return run, (*operands, scales)


def build_layer(
    implementation: str, preset: str, tokens: int, into: Tile | None, out: Tile | None
) -> Built:
    """Builds the same layer as a sort, three grouped products and a weighted sum.

    Args:
      implementation: Implementation of the products, see `_product`.
      preset: One of `shapes.PRESETS`.
      tokens: Tokens of the step.
      into: Tile of the gate's and the up projection's products; None for the implementation's own.
      out: Tile of the down projection's product.
    """
    layer = shapes.PRESETS[preset]
    multiply = _product(implementation, into)
    multiply_out = _product(implementation, out)
    rows_of_tile = max(into[0] if into else 1, out[0] if out else 1)

    def run(x, experts, weights, gate, up, down):  # noqa: ANN001, ANN202
        flat = experts.reshape(-1)
        order = jnp.argsort(flat)
        sizes = jnp.bincount(flat, length=layer.experts).astype(jnp.int32)
        source = jnp.pad(order // layer.experts_per_token, (0, -len(order) % rows_of_tile))
        rows = x[source]
        hidden = jax.nn.silu(multiply(rows, gate, sizes)) * multiply(rows, up, sizes)
        parts = multiply_out(hidden, down, sizes)[jnp.argsort(order)]
        parts = parts.reshape(*experts.shape, -1).astype(jnp.float32)
        return jnp.sum(parts * weights[..., None], axis=1).astype(x.dtype)

    return run, _layer_operands(preset, tokens, "bfloat16")


def build_product(
    implementation: str,
    direction: str,
    m: int,
    k: int,
    n: int,
    groups: int,
    tile: Tile | None = None,
) -> Built:
    """Builds a grouped product [m, k] x [groups, k, n] in bfloat16, or one of its two gradients.

    Args:
      implementation: Implementation of the product, see `_product`.
      direction: "forward", "to_lhs" or "to_rhs".
      m: Rows.
      k: Length of the contraction of the forward product.
      n: Columns of the forward product.
      groups: Number of groups.
      tile: Tile of the product; None for the implementation's own.
    """
    product = _product(implementation, tile)
    lhs, grad = _shape((m, k), jnp.bfloat16), _shape((m, n), jnp.bfloat16)
    rhs, sizes = _shape((groups, k, n), jnp.bfloat16), _shape((groups,), jnp.int32)
    if direction == "forward":
        return product, (lhs, rhs, sizes)
    if implementation == "tokamax":
        return _tokamax_gradient(direction, tile), (
            (grad, rhs, sizes) if direction == "to_lhs" else (lhs, grad, sizes)
        )

    def to_lhs(grad, rhs, sizes):  # noqa: ANN001, ANN202
        _, pull = jax.vjp(lambda a: product(a, rhs, sizes), jnp.zeros(lhs.shape, lhs.dtype))
        return pull(grad)[0]

    def to_rhs(lhs, grad, sizes):  # noqa: ANN001, ANN202
        _, pull = jax.vjp(lambda b: product(lhs, b, sizes), jnp.zeros(rhs.shape, rhs.dtype))
        return pull(grad)[0]

    if direction == "to_lhs":
        return to_lhs, (grad, rhs, sizes)
    return to_rhs, (lhs, grad, sizes)


def _product(implementation: str, tile: Tile | None) -> Product:
    """A grouped product by the name of its implementation.

    "tpu" is our kernel; "ragged_dot" is XLA's, on TPU a Mosaic kernel; "megablox" is
    `jax.experimental.pallas.ops.tpu.megablox`; "tokamax" is that package's TPU kernel.
    """
    if implementation == "tpu":
        return functools.partial(grouped_matmul, implementation="tpu")
    if implementation == "ragged_dot":

        def ragged_dot(lhs, rhs, sizes):  # noqa: ANN001, ANN202
            if tile is None:
                return jax.lax.ragged_dot(lhs, rhs, sizes)
            with set_xla_metadata(ragged_dot_tiling=",".join(map(str, tile))):
                return jax.lax.ragged_dot(lhs, rhs, sizes)

        return ragged_dot
    if tile is None:
        raise ValueError(f"implementation={implementation!r} got no tile, wanted one")
    if implementation == "megablox":
        from jax.experimental.pallas.ops.tpu.megablox import gmm

        return lambda lhs, rhs, sizes: gmm(lhs, rhs, sizes, jnp.bfloat16, tuple(tile))
    if implementation == "tokamax":
        return functools.partial(_tokamax().gmm, **_tokamax_options(tile))
    raise ValueError(
        f"implementation={implementation!r}, wanted tpu, ragged_dot, megablox or tokamax"
    )


def _tokamax() -> Any:  # noqa: ANN401
    # The package's public function refuses its TPU kernel if the default device is a CPU.
    return importlib.import_module("tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel")


def _tokamax_options(tile: Tile | None) -> dict[str, Any]:
    return {
        "precision": (jax.lax.Precision.DEFAULT,) * 2,
        "out_dtype": jnp.bfloat16,
        "tiling": None if tile is None else tuple(tile),
    }


def _tokamax_gradient(direction: str, tile: Tile | None) -> Callable[..., jax.Array]:
    options = _tokamax_options(tile)
    if direction == "to_lhs":
        return functools.partial(_tokamax().gmm, transpose_rhs=True, **options)
    tgmm = _tokamax().tgmm
    return lambda lhs, grad, sizes: tgmm(lhs.T, grad, sizes, **options)
