"""The programs that `compile_report` compiles, and how many grid steps their kernels run.

A schedule gives the cost of one grid step of a kernel. The number of steps depends on the chosen
experts; `Work` has it for a realistic load, see `shapes`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels import shapes
from pallas_kernels.builders import Built, Tile, build_gather_gemv, build_layer, build_product
from pallas_kernels.chips import TPUS
from pallas_kernels.tpu_schedule import Kernel

DEVICE_EXPERTS = {"demo": 8, "base": 32, "small": 8}  # experts of one device in training
_ROWS = 1024  # rows of training are padded to a multiple of this
PASSES = ("forward", "to_lhs", "to_rhs")  # the product and its two gradients


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one launch of a kernel."""

    trips: int  # iterations of the grid's loop on one core
    bytes: int  # moved from and to HBM by all cores
    flops: int = 0  # without padding rows


# The number of grid steps of a kernel.


def gather_gemv_work(preset: str, tokens: int, chip: str, kernel: Kernel) -> Work | None:
    """Work of our fused kernel, which reads each chosen expert's weights once.

    Args:
      preset: One of `shapes.PRESETS`.
      tokens: Tokens of the step.
      chip: One of `chips.TPUS`.
      kernel: The kernel's schedule.

    Returns:
      The work, or None if the compiler moved the weights to VMEM before the kernel, which then has
      no pipeline.
    """
    layer = shapes.PRESETS[preset]
    active = len(np.unique(shapes.choose(tokens, layer)))
    streamed = [w for w in kernel.windows if not w.output and w.buffers > 1]
    weights = [w for w in streamed if len(w.whole) == 3 and w.whole[0] == layer.experts]
    if not weights:
        return None
    steps = max(-(-w.whole[1] // w.block[1]) * -(-w.whole[2] // w.block[2]) for w in weights)
    cores = TPUS[chip].device_cores
    cores = cores if steps % cores == 0 else 1
    once = sum(w.bytes for w in kernel.windows if w not in weights)
    a_step = sum(w.bytes for w in weights)
    # The transfers of one step in the schedule, less those of operands that stay in VMEM.
    loaded = kernel.dma.get("hbm_to_vmem", 0)
    kept = sum(w.bytes for w in kernel.windows if not w.output and w not in weights)
    moved = active * steps * max(a_step, loaded - kept) + once * cores
    rows = tokens * layer.experts_per_token
    return Work(active * steps // cores, moved, 2 * rows * layer.expert_values)


def visits(sizes: np.ndarray, tile: int) -> np.ndarray:
    """Pairs of a group and a row tile that contains rows of it, in ascending order.

    Args:
      sizes: int32[g] or int64[g], rows of each group.
      tile: Rows of a tile.

    Returns:
      int64[v, 2], the group and the tile of each pair.
    """
    ends = np.cumsum(sizes)
    pairs = [
        (group, row_tile)
        for group, (end, size) in enumerate(zip(ends, sizes, strict=True))
        if size
        for row_tile in range((end - size) // tile, -(-end // tile))
    ]
    return np.array(pairs, int).reshape(-1, 2)


def product_work(direction: str, sizes: np.ndarray, k: int, n: int, tile: Tile, cores: int) -> Work:
    """Work of a grouped product in bfloat16 whose pipeline does not fetch a repeated block again.

    The grid of all compared kernels runs over column tiles, then (group, row tile) pairs, then
    tiles of the contraction; for the gradient of the weights the pairs are the innermost axis. Two
    cores divide the first axis.

    Args:
      direction: One of `PASSES`. The product contracts k and has n columns in the first two; in
        "to_rhs" the result is [k, n] for each group.
      sizes: int32[g] or int64[g], rows of each group.
      k: Length of the contraction, or rows of the result.
      n: Columns of the result.
      tile: Rows, k and n of a block.
      cores: Cores that run the kernel.

    Returns:
      The work.
    """
    tm, tk, tn = tile
    pairs = visits(sizes, tm)
    tiles_k, tiles_n = -(-k // tk), -(-n // tn)
    m = max(int(np.sum(sizes)), 1)
    used = min(cores, tiles_n)
    trips, moved = 0, 0
    for core in range(used):
        columns = np.array_split(np.arange(tiles_n), used)[core]
        if direction == "to_rhs":
            column, inner, pair = _grid(len(columns), tiles_k, len(pairs))
        else:
            column, pair, inner = _grid(len(columns), len(pairs), tiles_k)
        column, (group, row) = columns[column], pairs[pair].T
        moved += _moved((row, inner), (tm, tk), (m, k))
        if direction == "to_rhs":
            moved += _moved((row, column), (tm, tn), (m, n))
            moved += _moved((group, inner, column), (1, tk, tn), (len(sizes), k, n))
        else:
            moved += _moved((group, inner, column), (1, tk, tn), (len(sizes), k, n))
            moved += _moved((row, column), (tm, tn), (m, n))
        trips = max(trips, len(column))
    return Work(trips, moved, 2 * int(np.sum(sizes)) * k * n)


def _grid(*sizes: int) -> list[np.ndarray]:
    return [axis.reshape(-1) for axis in np.indices(sizes)]


def _moved(index: Sequence[np.ndarray], block: Sequence[int], whole: Sequence[int]) -> int:
    """Bytes of the blocks that differ from the previous one; an axis may end in a shorter block."""
    blocks = np.stack(index, axis=1)
    changed = np.ones(len(blocks), bool)
    changed[1:] = np.any(blocks[1:] != blocks[:-1], axis=1)
    extents = np.minimum(block, np.asarray(whole) - blocks[changed] * np.asarray(block))
    return int(np.sum(np.prod(extents, axis=1))) * 2


def product_tile(direction: str, k: int, n: int, kernel: Kernel) -> Tile | None:
    """The tile that a kernel was compiled with, read from its windows.

    Args:
      direction: One of `PASSES`.
      k: Length of the contraction, or rows of the result in "to_rhs".
      n: Columns of the result.
      kernel: The kernel's schedule.

    Returns:
      The tile, or None if the kernel has no window of an operand that determines it.
    """
    outputs = [w for w in kernel.windows if w.output]
    inputs = [
        w for w in kernel.windows if not w.output and len(w.whole) == 3 - (direction == "to_rhs")
    ]
    if direction == "to_rhs":
        if not outputs or not inputs:
            return None
        tk, tn = outputs[0].block[-2:]
        return inputs[0].block[0], tk, tn
    rows = [w.block[0] for w in kernel.windows if len(w.whole) == 2]
    weights = [w for w in inputs if sorted(w.whole[1:]) == sorted((k, n))]
    if not rows or not weights:
        return None
    first, second = weights[0].block[-2:]
    tk, tn = (first, second) if weights[0].whole[1:] == (k, n) else (second, first)
    return rows[0], tk, tn


# The list of programs.


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile for a chip.

    `op` is "gather_gemv" for the whole layer by any implementation, "grouped_matmul", or "tile" for
    one `ragged_dot` of the layer with a given tile, from which the best tile is chosen.
    """

    op: str
    implementation: str
    chip: str
    preset: str
    tokens: int
    dtype: str = "bfloat16"
    direction: str = "forward"
    matrix: str = ""  # "into" [d, f] or "out" [f, d]; "" for the whole layer
    tiles: tuple[Tile, ...] = ()  # given tiles; for a layer that of gate and up, and that of down

    @property
    def key(self) -> str:
        """The program's unique name."""
        values = (str(value) for value in dataclasses.astuple(self))
        return " ".join(value.replace(" ", "") for value in values if value)

    @property
    def layer(self) -> shapes.Layer:
        """The layer that the program computes, or a part of which it computes."""
        return shapes.PRESETS[self.preset]

    @property
    def expert_bytes(self) -> int:
        """Bytes of the weights that the program reads of the distinct chosen experts."""
        if self.op == "grouped_matmul":
            active = int(np.count_nonzero(self.sizes(self.tokens)))
            values = self.layer.expert_values // 3
        else:
            active = len(np.unique(shapes.choose(self.tokens, self.layer)))
            values = self.layer.expert_values // (3 if self.matrix else 1)
        return active * values * jnp.dtype(self.dtype).itemsize

    def sizes(self, tokens: int) -> np.ndarray:
        """Rows of each expert.

        Args:
          tokens: Tokens of the step.

        Returns:
          int32[e] or int64[e].
        """
        if self.op == "grouped_matmul":
            return shapes.group_sizes(tokens, self.layer, DEVICE_EXPERTS[self.preset])
        chosen = shapes.choose(tokens, self.layer).reshape(-1)
        return np.bincount(chosen, minlength=self.layer.experts)

    def request(self) -> tuple[str, list[Any]]:
        """The builder's name and its arguments, for `tpu_schedule.analyse`."""
        if self.op == "gather_gemv" and self.implementation == "tpu":
            return _builder(build_gather_gemv), [self.preset, self.tokens, self.dtype]
        if self.op == "gather_gemv":
            into, out = self.tiles or (None, None)
            return _builder(build_layer), [self.implementation, self.preset, self.tokens, into, out]
        k, n = self._widths()
        tile = self.tiles[0] if self.tiles else None
        sizes = self.sizes(self.tokens)
        rows = int(sizes.sum())
        rows += -rows % _ROWS  # XLA uses its fast kernel for whole tiles only
        arguments = [self.implementation, self.direction, rows, k, n, len(sizes), tile]
        return _builder(build_product), arguments

    def _widths(self) -> tuple[int, int]:
        d, f = self.layer.dim, self.layer.ffn
        return (f, d) if self.matrix == "out" else (d, f)

    def work(self, kernel: Kernel, place: int, tokens: int) -> Work | None:
        """The work of one of the program's kernels.

        Args:
          kernel: The kernel's schedule.
          place: The index of the kernel among the program's kernels that use the matrix unit, in
            order of execution.
          tokens: Tokens of the step; may differ from the tokens that the program was compiled for,
            because the schedule of a tile is the same for any number of rows.

        Returns:
          The work, or None if the compiler's report does not contain the kernel's tile.
        """
        if self.op == "gather_gemv" and self.implementation == "tpu":
            return gather_gemv_work(self.preset, tokens, self.chip, kernel)
        k, n = self._widths()
        if self.op == "gather_gemv" and place == 2:
            k, n = n, k
        if self.direction == "to_lhs":
            k, n = n, k
        tile = product_tile(self.direction, k, n, kernel)
        if tile is None and self.tiles:
            tile = self.tiles[min(place // 2, len(self.tiles) - 1)]
        if tile is None:
            return None
        # Tokamax uses `emit_pipeline`, which runs on one core.
        cores = 1 if self.implementation == "tokamax" else TPUS[self.chip].device_cores
        return product_work(self.direction, self.sizes(tokens), k, n, tile, cores)


def _builder(function: Callable[..., Built]) -> str:
    return f"{function.__module__}:{function.__name__}"


COMPARED = ("v5p", "v6e", "tpu7x")  # chips for which the tiles of public kernels are searched
_TILE_ROWS = (16, 32, 64)  # the default tile has 128 rows or more
# Blocks that are large enough to use the HBM bandwidth; larger ones take minutes to compile.
_TILE_WIDTHS = {"into": ((4096, 512), (2048, 1024)), "out": ((2048, 1024), (1024, 2048))}
# Tiles of the training products: rows, contraction and columns of the kernel's own product.
_TRAINING_TILES = {
    "forward": ((512, 1024, 1024), (512, 4096, 512)),
    "to_lhs": ((512, 1024, 1024), (512, 2048, 1024)),
    "to_rhs": ((512, 1024, 1024), (512, 2048, 1024)),
}
_EIGHT_BIT_TOKENS = (1, 16, 64)


def layers(chips: Sequence[str]) -> list[Program]:
    """Programs of whole layers that do not depend on a search for tiles.

    Args:
      chips: Names of `chips.TPUS`.
    """
    found = []
    for chip in chips:
        ours = functools.partial(Program, "gather_gemv", "tpu", chip)
        public = functools.partial(Program, "gather_gemv", "ragged_dot", chip)
        found += [ours(preset, t) for preset in shapes.PRESETS for t in shapes.STEP_TOKENS]
        found += [ours("small", t, "int8") for t in _EIGHT_BIT_TOKENS]
        if chip == "tpu7x":
            found += [ours("small", t, "float8_e4m3fn") for t in _EIGHT_BIT_TOKENS]
        found += [public(preset, 16) for preset in ("demo", "base")]
        counts = shapes.STEP_TOKENS if chip in COMPARED else (16,)
        found += [public("small", t) for t in counts]
    return found


def tiles(chips: Sequence[str]) -> list[Program]:
    """Programs of single products of a layer of `small`, one for each candidate tile.

    Args:
      chips: Names of `chips.TPUS`.
    """
    tokens = shapes.STEP_TOKENS[-1]
    return [
        Program(
            "tile", "ragged_dot", chip, "small", tokens, matrix=matrix, tiles=((rows, *widths),)
        )
        for chip in chips
        if chip in COMPARED
        for matrix, choices in _TILE_WIDTHS.items()
        for widths in choices
        for rows in _TILE_ROWS
    ]


def pinned_layers(chip: str, best: Callable[[str, int], Tile | None]) -> list[Program]:
    """Programs of whole layers of `small` with the best tile found for their products.

    Args:
      chip: One of `chips.TPUS`.
      best: Returns the best tile for a matrix ("into" or "out") and a number of tokens, or None if
        no tile was found.
    """
    found = []
    for tokens in shapes.STEP_TOKENS:
        into, out = best("into", tokens), best("out", tokens)
        if into is None or out is None:
            continue
        for implementation in ("ragged_dot", "megablox", "tokamax"):
            if implementation == "ragged_dot" or tokens in _EIGHT_BIT_TOKENS:
                found.append(
                    Program("gather_gemv", implementation, chip, "small", tokens, tiles=(into, out))
                )
    return found


def training(chips: Sequence[str]) -> list[Program]:
    """Programs of grouped products at the shapes of training, and of their gradients.

    Args:
      chips: Names of `chips.TPUS`.
    """
    found = []
    for chip in chips:
        for preset, layer in shapes.PRESETS.items():
            one = functools.partial(
                Program, "grouped_matmul", chip=chip, preset=preset, tokens=layer.train_tokens
            )
            for direction in PASSES:
                part = functools.partial(one, direction=direction)
                found += [part("tpu", matrix=matrix) for matrix in ("into", "out")]
                if preset != "small" or chip not in COMPARED:
                    continue
                found.append(part("ragged_dot", matrix="into"))
                for tile in _TRAINING_TILES[direction]:
                    found += [
                        part(name, matrix="into", tiles=(tile,)) for name in ("megablox", "tokamax")
                    ]
    return found
