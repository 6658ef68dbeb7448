"""The mesh axes of a `jax.shard_map` over which a value varies from device to device."""

import jax
from jax.typing import DTypeLike


def varying(*arrays: jax.Array) -> frozenset:
    """Mesh axes of a `shard_map` that any of the arrays varies over.

    Args:
      *arrays: Of any shapes [...] and dtypes, such as bfloat16 or int32.

    Returns:
      Names of mesh axes.
    """
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary(x: jax.Array, axes: frozenset) -> jax.Array:
    """Casts a value to one that varies over the given mesh axes.

    Args:
      x: Of any shape [...] and dtype, such as bfloat16 or int32; may vary over some of the axes.
      axes: Names of mesh axes.

    Returns:
      The same values, shape [...] and dtype, varying over `axes` and over the axes of x.
    """
    return jax.lax.pcast(x, tuple(sorted(axes - varying(x))), to="varying")


def result(shape: tuple[int, ...], dtype: DTypeLike, like: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape of a kernel's result, for `pallas_call`.

    Args:
      shape: Shape of the result.
      dtype: Dtype of the result.
      like: Of any shape [...] and dtype, such as bfloat16 or int32.

    Returns:
      A shape that varies over the mesh axes that `like` varies over.
    """
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
