"""Products of matrices whose bits in a row do not depend on the number of rows."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from interaction.types import Array
from pallas_kernels.implementation import platform

# XLA's dot on CPUs divides the sums of small results among threads, and long sums into parts, by
# the number of rows. With sums of at most `_RUN` numbers, at least `_COLUMNS` columns, and as many
# rows as `padded_rows` says, a row has the same bits for any number of rows (as compiled with
# `distributed.xla_options`).
_RUN = 256
_COLUMNS = 16
_ROWS, _ENOUGH, _LARGE = 4, 12, 1 << 18
_FEW = 64  # rows for which copying weights takes more time than adding parts at the end


def exact(a: Array, b: Array) -> jax.lax.Precision | None:
    """Precision of a product: full for float32 operands, which TPUs and GPUs round by default.

    Args:
      a: [...], of any dtype.
      b: [...], of any dtype.

    Returns:
      `HIGHEST` where both are float32, None (the backend's default) otherwise.
    """
    return jax.lax.Precision.HIGHEST if a.dtype == b.dtype == jnp.float32 else None


def matmul(a: Array, b: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """Product of the last two axes, summed in float32.

    Args:
      a: float[..., m, k].
      b: float[..., k, n], with the same leading axes.
      dtype: Dtype of the result, rounded to once.

    Returns:
      [..., m, n] in `dtype`.
    """
    if platform() != "cpu":
        return jnp.matmul(a, b, precision=exact(a, b), preferred_element_type=dtype)
    m, k = a.shape[-2:]
    n, run = b.shape[-1], _run(k)
    a = pad_axis(a, -2, padded_rows(m, run, n))
    b = pad_axis(b, -1, max(n, _COLUMNS))
    multiply = functools.partial(
        jnp.matmul,
        precision=exact(a, b),
        preferred_element_type=dtype if k == run else jnp.float32,
    )
    if a.ndim == 2 and m <= _FEW and not k % run:  # slices of the weights would be copied
        parts = multiply(
            a.reshape(len(a), k // run, run).swapaxes(0, 1), b.reshape(k // run, run, b.shape[1])
        )
    else:
        parts = (
            multiply(a[..., at : at + run], b[..., at : at + run, :]) for at in range(0, k, run)
        )
    out, *rest = parts
    for part in rest:
        out = out + part
    return out[..., :m, :n].astype(dtype)


def padded_rows(m: int, k: int, n: int) -> int:
    """Rows with which a product of m rows has, on CPUs, the bits of a product of any more rows.

    Args:
      m: Rows.
      k: Numbers of a sum.
      n: Columns.
    """
    few = -(-m // _ROWS) * _ROWS if k * n <= _LARGE else _ENOUGH
    return max(m, min(few, _ENOUGH))


def pad_axis(x: Array, axis: int, size: int) -> Array:
    """Appends zeros to an axis of [...] up to `size`; the dtype stays."""
    if x.shape[axis] == size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _run(k: int) -> int:
    """Numbers of a sum of k that are added as one: a divisor of k, if one is near the most."""
    counts = range(-(-k // _RUN), 2 * -(-k // _RUN) + 1)
    return next((k // count for count in counts if not k % count), _RUN)


def dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """Multiplies [..., d] by [d, f] as one product of two matrices.

    The product is computed in the weight's dtype. Flattening first keeps XLA's CPU backend from
    transposing the activations for the weight's gradient, which took twice as long.

    Args:
      x: float[..., d].
      weight: float[d, f].
      dtype: Dtype of the result, rounded to once; None takes that of `x`.

    Returns:
      [..., f] in `dtype`.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(weight.dtype)
    out = matmul(rows, weight, x.dtype if dtype is None else dtype)
    return out.reshape(*x.shape[:-1], weight.shape[-1])
