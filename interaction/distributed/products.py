"""Matrix products of a model on a mesh: `ops.dense` on a device's columns."""

from jax.typing import DTypeLike

from interaction.distributed.collectives import TENSOR, gather
from interaction.ops.dense import dense
from interaction.types import Array


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
