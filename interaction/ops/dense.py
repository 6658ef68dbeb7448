"""Matrix product with a weight over the last axis."""

from interaction.types import Array


def dense(x: Array, weight: Array) -> Array:
    """Multiplies [..., d] by [d, f], as one product of two matrices.

    Flattening first keeps XLA's CPU backend from transposing the activations to form the
    weight's gradient, which took twice as long.

    Returns:
      [..., f].
    """
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1])
