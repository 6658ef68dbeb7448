"""Matrix products of a model on a mesh: `ops.dense` on a device's sessions and columns."""

from jax.typing import DTypeLike

from interaction.distributed.collectives import SESSIONS, TENSOR, axis_size, gather
from interaction.ops import dense as ops
from interaction.types import Array


def dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """`ops.dense.dense` of activations whose leading axis counts sessions.

    A single session, on one device or replicated, is not padded.

    Args:
      x: float[b, ..., d].
      weight: float[d, f].
      dtype: Dtype of the result; None takes that of `x`.

    Returns:
      [b, ..., f] in `dtype`.
    """
    alone = len(x) == 1 and axis_size(*SESSIONS) == 1
    return ops.dense(x, weight, dtype, pad_rows=not alone)


def column_dense(x: Array, weight: Array, dtype: DTypeLike | None = None) -> Array:
    """`dense` with a weight whose columns are split over the mesh axis `tensor`.

    Each device multiplies all of x by its columns, then the results are gathered: no sum is split
    (column parallelism of Megatron-LM, arXiv 1909.08053 §3, without its row-parallel half).

    Args:
      x: float[b, ..., d].
      weight: float[d, f / devices].
      dtype: Dtype of the result; None takes that of `x`.

    Returns:
      [b, ..., f] in `dtype`.
    """
    return gather(dense(x, weight, dtype), TENSOR)
