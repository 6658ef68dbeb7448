"""Matrix product with a weight over the last axis."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from interaction.types import Array

# XLA's dot on CPUs takes the rows left over from tiles of a few rows along another path, with
# other bits. In a multiple of 12 none are left over, so a session's bits keep to its own row.
_ROWS = 12


def exact(a: Array, b: Array) -> jax.lax.Precision | None:
    """Precision of a product of float32 operands: all of it, which TPUs and GPUs round by default.

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
    """Multiplies [..., d] by [d, f], as one product of two matrices.

    The product is taken in the weight's dtype. Flattening first keeps XLA's CPU backend from
    transposing the activations to form the weight's gradient, which took twice as long.

    Args:
      x: float32 or bfloat16 [..., d].
      weight: float32 or bfloat16 [d, f].
      dtype: Of the result, rounded to once; None takes that of `x`.
      pad_rows: Whether rows are padded to a multiple of 12, so that the bits of a row do not
        depend on how many there are. Only a caller with one session alone may do without.

    Returns:
      [..., f].
    """
    rows = x.reshape(-1, x.shape[-1]).astype(weight.dtype)
    left_over = -len(rows) % _ROWS if pad_rows else 0
    padded = jnp.pad(rows, ((0, left_over), (0, 0))) if left_over else rows
    kind = x.dtype if dtype is None else dtype
    precision = exact(padded, weight)
    out = jnp.matmul(padded, weight, precision=precision, preferred_element_type=kind)
    return out[: len(rows)].reshape(*x.shape[:-1], weight.shape[-1])
