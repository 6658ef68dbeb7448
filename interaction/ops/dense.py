"""Product of the last axis with a weight matrix."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from interaction.types import Array

# XLA's dot on CPUs computes rows beyond the last full tile by another path, with other bits. A
# multiple of 12 rows fills all tiles, so the bits of a row do not depend on the number of rows.
_ROWS = 12


def exact(a: Array, b: Array) -> jax.lax.Precision | None:
    """Precision of a product: full for float32 operands, which TPUs and GPUs round by default.

    Args:
      a: [...], of any dtype.
      b: [...], of any dtype.

    Returns:
      `HIGHEST` where both are float32, None (the backend's default) otherwise.
    """
    return jax.lax.Precision.HIGHEST if a.dtype == b.dtype == jnp.float32 else None


def dense(
    x: Array, weight: Array, dtype: DTypeLike | None = None, *, pad_rows: bool = True
) -> Array:
    """Multiplies [..., d] by [d, f] as one product of two matrices.

    The product is computed in the weight's dtype. Flattening first keeps XLA's CPU backend from
    transposing the activations for the weight's gradient, which took twice as long.

    Args:
      x: float[..., d].
      weight: float[d, f].
      dtype: Dtype of the result, rounded to once; None takes that of `x`.
      pad_rows: Whether rows are padded to a multiple of 12, so that the bits of a row do not
        depend on the number of rows. Only a call for a single session may omit it.

    Returns:
      [..., f] in `dtype`.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(weight.dtype)
    left_over = -len(rows) % _ROWS if pad_rows else 0
    padded = jnp.pad(rows, ((0, left_over), (0, 0))) if left_over else rows
    kind = x.dtype if dtype is None else dtype
    precision = exact(padded, weight)
    out = jnp.matmul(padded, weight, precision=precision, preferred_element_type=kind)
    return out[: len(rows)].reshape(*x.shape[:-1], weight.shape[-1])
