"""Matrix products of a model on a mesh: `ops.dense` on one device's sessions and columns."""

from jax.typing import DTypeLike

from interaction.distributed.collectives import SESSIONS, TENSOR, axis_size, gather
from interaction.ops import dense as ops
from interaction.types import Array


def dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """`ops.dense.dense` of activations whose leading axis counts sessions.

    One session that is alone, on one device or replicated, is not padded.

    Args:
      x: float32 or bfloat16 [b, ..., d].
      weight: float32 or bfloat16 [d, f].
      dtype: Of the result; None takes that of `x`.

    Returns:
      [b, ..., f].
    """
    alone = len(x) == 1 and axis_size(*SESSIONS) == 1
    return ops.dense(x, weight, dtype, pad_rows=not alone)


def column_dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """`dense` with a weight whose columns are split over the mesh axis `tensor`.

    Each device multiplies all of x with its columns, then the results are gathered: no sum is
    split (column parallelism of Megatron-LM, arXiv 1909.08053 §3, without its row-parallel half).

    Args:
      x: float32 or bfloat16 [b, ..., d].
      weight: float32 or bfloat16 [d, f / devices].
      dtype: Of the result; None takes that of `x`.

    Returns:
      [b, ..., f].
    """
    return gather(dense(x, weight, dtype), TENSOR)
