"""Inside `jax.shard_map`: over which mesh axes a value varies from device to device."""

import jax
from jax.typing import DTypeLike


def varying(*arrays: jax.Array) -> frozenset:
    """Mesh axes of a `shard_map` that any of the arrays varies over."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary(x: jax.Array, axes: frozenset) -> jax.Array:
    """`x` as a value that varies over `axes`, over some of which it may do so already."""
    return jax.lax.pcast(x, tuple(sorted(axes - varying(x))), to="varying")


def result(shape: tuple[int, ...], dtype: DTypeLike, like: jax.Array) -> jax.ShapeDtypeStruct:
    """A kernel's result: of that shape and dtype, varying over the axes that `like` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
