"""Matrix product with a weight over the last axis."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from interaction.parallel import SESSIONS, TENSOR, axis_size, gather
from interaction.types import Array

# XLA's dot on CPUs takes the rows left over from tiles of a few rows along another path, with
# other bits. In a multiple of 12 none are left over, so a session's bits keep to its own row.
_ROWS = 12


def exact(a: Array, b: Array) -> jax.lax.Precision | None:
    """Precision of a product: what is float32 is meant to be; by default TPUs and GPUs round it."""
    return jax.lax.Precision.HIGHEST if a.dtype == b.dtype == jnp.float32 else None


def dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """Multiplies [..., d] by [d, f], as one product of two matrices.

    Flattening first keeps XLA's CPU backend from transposing the activations to form the
    weight's gradient, which took twice as long. The leading axis counts sessions; one session that
    is alone is not padded.

    Args:
      x: [..., d].
      weight: [d, f].
      dtype: Of the result, rounded to once; None takes that of the operands.

    Returns:
      [..., f].
    """
    rows = x.reshape(-1, x.shape[-1])
    alone = len(x) == 1 and axis_size(*SESSIONS) == 1
    left_over = 0 if alone else -len(rows) % _ROWS
    padded = jnp.pad(rows, ((0, left_over), (0, 0))) if left_over else rows
    out = jnp.matmul(padded, weight, precision=exact(x, weight), preferred_element_type=dtype)
    return out[: len(rows)].reshape(*x.shape[:-1], weight.shape[-1])


def column_dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """`dense` with a weight whose columns are split over the mesh axis `tensor`.

    Each device multiplies all of x with its columns, then the results are gathered: no sum is
    split (column parallelism of Megatron-LM, arXiv 1909.08053 §3, without its row-parallel half).

    Args:
      x: [..., d].
      weight: [d, f / devices].
      dtype: As in `dense`.

    Returns:
      [..., f].
    """
    return gather(dense(x, weight, dtype), TENSOR)
