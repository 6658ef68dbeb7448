"""The device memory of a compiled program."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class Memory(NamedTuple):
    """Bytes of HBM on each device while the program runs."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporaries: int
    code: int
    by_kind: dict[str, int]  # adds up to `peak`

    @property
    def peak(self) -> int:
        """Most bytes at any time."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def bytes_per_device(tree: Any) -> int:  # noqa: ANN401
    """Bytes per device of a tree of arrays, or of `jax.ShapeDtypeStruct`s with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        total += math.prod(shape) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
    return total


def hbm(compiled: jax.stages.Compiled, arguments: Mapping[str, Any]) -> Memory:
    """Memory of a compiled program.

    Args:
      compiled: The program.
      arguments: Its arguments by kind: arrays or `jax.ShapeDtypeStruct`s with shardings.

    Returns:
      The compiler's figures. To the kinds of arguments `by_kind` adds "padding" (padding of the
      arguments' layouts, minus arguments that the program does not read), "outputs" (those that
      alias no argument), "temporaries" and "code".

    Raises:
      RuntimeError: The backend has no such figures.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise RuntimeError("memory: the backend gives no memory analysis of the program")
    kinds = {kind: bytes_per_device(tree) for kind, tree in arguments.items()}
    size, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    aliased, temporaries = found.alias_size_in_bytes, found.temp_size_in_bytes
    code = found.generated_code_size_in_bytes
    kinds["padding"] = size - sum(kinds.values())
    kinds |= {"outputs": outputs - aliased, "temporaries": temporaries, "code": code}
    return Memory(size, outputs, aliased, temporaries, code, kinds)
