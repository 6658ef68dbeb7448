"""What `compile_report` compiles: our kernels, the public ones, and how often their loops run.

A builder gives a function and its operands' shapes; it runs in the compiling process, under the
mesh of the chip. A schedule tells what a step of a kernel costs; how many steps there are depends
on the experts chosen, which `Work` computes from a realistic load (`shapes`).
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from pallas_kernels import shapes
from pallas_kernels.gather_gemv import Scales, gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.tpu_schedule import CHIPS, Kernel

Built = tuple[Callable[..., Any], tuple[Any, ...]]
Tile = tuple[int, int, int]  # rows, contracted, columns
Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

DEVICE_EXPERTS = {"demo": 8, "base": 32, "small": 8}  # on one device, in training
_ROWS = 1024  # of training, in whole tiles of this many
PASSES = ("forward", "to_lhs", "to_rhs")


@dataclasses.dataclass(frozen=True)
class Work:
    """One launch of a kernel."""

    trips: int  # of its grid's loop, on one core
    bytes: int  # that cross HBM, on all cores
    flops: int = 0  # of rows that exist


def _shape(shape: Sequence[int], dtype: jax.typing.DTypeLike) -> Any:  # noqa: ANN401
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


# Builders.


def _layer_operands(preset: str, tokens: int, dtype: str) -> tuple[Any, ...]:
    layer = shapes.PRESETS[preset]
    d, e, f, k = layer.dim, layer.experts, layer.ffn, layer.experts_per_token
    return (
        _shape((tokens, d), jnp.bfloat16),
        _shape((tokens, k), jnp.int32),
        _shape((tokens, k), jnp.float32),
        _shape((e, d, f), dtype),
        _shape((e, d, f), dtype),
        _shape((e, f, d), dtype),
    )


def build_gather_gemv(preset: str, tokens: int, dtype: str) -> Built:
    """Our fused layer; 8-bit weights come with their scales."""
    layer = shapes.PRESETS[preset]
    operands = _layer_operands(preset, tokens, dtype)
    if jnp.dtype(dtype).itemsize > 1:
        return functools.partial(gather_gemv, implementation="tpu"), operands
    hidden = _shape((layer.experts, layer.ffn), jnp.float32)
    scales = Scales(hidden, hidden, _shape((layer.experts, layer.dim), jnp.float32))

    def run(*operands: Any) -> jax.Array:  # noqa: ANN401
        *layer_operands, scales = operands
        return gather_gemv(*layer_operands, scales=scales, implementation="tpu")

    return run, (*operands, scales)


def build_layer(
    implementation: str, preset: str, tokens: int, into: Tile | None, out: Tile | None
) -> Built:
    """The same layer by three grouped products between a sort and a weighted sum.

    Args:
      implementation: Of the products, see `_product`.
      preset: Of `shapes.PRESETS`.
      tokens: Tokens.
      into: Tile of the gate's and the up projection's products; None leaves it to them.
      out: Tile of the down projection's.
    """
    layer = shapes.PRESETS[preset]
    multiply = _product(implementation, into)
    multiply_out = _product(implementation, out)
    rows_of_tile = max(into[0] if into else 1, out[0] if out else 1)

    def run(x, experts, weights, gate, up, down):  # noqa: ANN001, ANN202
        flat = experts.reshape(-1)
        order = jnp.argsort(flat)
        sizes = jnp.bincount(flat, length=layer.experts).astype(jnp.int32)
        source = jnp.pad(order // layer.experts_per_token, (0, -len(order) % rows_of_tile))
        rows = x[source]
        hidden = jax.nn.silu(multiply(rows, gate, sizes)) * multiply(rows, up, sizes)
        parts = multiply_out(hidden, down, sizes)[jnp.argsort(order)]
        parts = parts.reshape(*experts.shape, -1).astype(jnp.float32)
        return jnp.sum(parts * weights[..., None], axis=1).astype(x.dtype)

    return run, _layer_operands(preset, tokens, "bfloat16")


def build_product(
    implementation: str,
    direction: str,
    m: int,
    k: int,
    n: int,
    groups: int,
    tile: Tile | None = None,
) -> Built:
    """A grouped product [m, k] x [groups, k, n], or one of its two gradients, alone."""
    product = _product(implementation, tile)
    lhs, grad = _shape((m, k), jnp.bfloat16), _shape((m, n), jnp.bfloat16)
    rhs, sizes = _shape((groups, k, n), jnp.bfloat16), _shape((groups,), jnp.int32)
    if direction == "forward":
        return product, (lhs, rhs, sizes)
    if implementation == "tokamax":
        return _tokamax_gradient(direction, tile), (
            (grad, rhs, sizes) if direction == "to_lhs" else (lhs, grad, sizes)
        )

    def to_lhs(grad, rhs, sizes):  # noqa: ANN001, ANN202
        _, pull = jax.vjp(lambda a: product(a, rhs, sizes), jnp.zeros(lhs.shape, lhs.dtype))
        return pull(grad)[0]

    def to_rhs(lhs, grad, sizes):  # noqa: ANN001, ANN202
        _, pull = jax.vjp(lambda b: product(lhs, b, sizes), jnp.zeros(rhs.shape, rhs.dtype))
        return pull(grad)[0]

    if direction == "to_lhs":
        return to_lhs, (grad, rhs, sizes)
    return to_rhs, (lhs, grad, sizes)


def _product(implementation: str, tile: Tile | None) -> Product:
    """A grouped product by its implementation's name.

    "tpu" is ours; "ragged_dot" XLA's, on TPU a Mosaic kernel of its own; "megablox" JAX's
    `jax.experimental.pallas.ops.tpu.megablox`; "tokamax" the package's kernel for TPUs.
    """
    if implementation == "tpu":
        return functools.partial(grouped_matmul, implementation="tpu")
    if implementation == "ragged_dot":

        def ragged_dot(lhs, rhs, sizes):  # noqa: ANN001, ANN202
            if tile is None:
                return jax.lax.ragged_dot(lhs, rhs, sizes)
            with set_xla_metadata(ragged_dot_tiling=",".join(map(str, tile))):
                return jax.lax.ragged_dot(lhs, rhs, sizes)

        return ragged_dot
    if tile is None:
        raise ValueError(f"implementation={implementation!r} got no tile, wanted one")
    if implementation == "megablox":
        from jax.experimental.pallas.ops.tpu.megablox import gmm

        return lambda lhs, rhs, sizes: gmm(lhs, rhs, sizes, jnp.bfloat16, tuple(tile))
    if implementation == "tokamax":
        return functools.partial(_tokamax().gmm, **_tokamax_options(tile))
    raise ValueError(
        f"implementation={implementation!r}, wanted tpu, ragged_dot, megablox or tokamax"
    )


def _tokamax() -> Any:  # noqa: ANN401
    # The package's public door asks the default device, a CPU here, and turns its kernel down.
    return importlib.import_module("tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel")


def _tokamax_options(tile: Tile | None) -> dict[str, Any]:
    return {
        "precision": (jax.lax.Precision.DEFAULT,) * 2,
        "out_dtype": jnp.bfloat16,
        "tiling": None if tile is None else tuple(tile),
    }


def _tokamax_gradient(direction: str, tile: Tile | None) -> Callable[..., jax.Array]:
    options = _tokamax_options(tile)
    if direction == "to_lhs":
        return functools.partial(_tokamax().gmm, transpose_rhs=True, **options)
    tgmm = _tokamax().tgmm
    return lambda lhs, grad, sizes: tgmm(lhs.T, grad, sizes, **options)


# How often a kernel's loop runs.


def gather_gemv_work(preset: str, tokens: int, chip: str, kernel: Kernel) -> Work | None:
    """Of our fused kernel: blocks of the chosen experts' weights, each once.

    Returns:
      None where the compiler put the weights into VMEM beforehand: no pipeline is left.
    """
    layer = shapes.PRESETS[preset]
    active = len(np.unique(shapes.choose(tokens, layer)))
    streamed = [w for w in kernel.windows if not w.output and w.buffers > 1]
    weights = [w for w in streamed if len(w.whole) == 3 and w.whole[0] == layer.experts]
    if not weights:
        return None
    steps = max(-(-w.whole[1] // w.block[1]) * -(-w.whole[2] // w.block[2]) for w in weights)
    cores = CHIPS[chip].cores if steps % CHIPS[chip].cores == 0 else 1
    once = sum(w.bytes for w in kernel.windows if w not in weights)
    a_step = sum(w.bytes for w in weights)
    # What the schedule itself transfers, each place once, beyond the operands that stay in VMEM.
    loaded = kernel.dma.get("hbm_to_vmem", 0)
    kept = sum(w.bytes for w in kernel.windows if not w.output and w not in weights)
    moved = active * steps * max(a_step, loaded - kept) + once * cores
    rows = tokens * layer.experts_per_token
    return Work(active * steps // cores, moved, 2 * rows * layer.expert_values)


def visits(sizes: np.ndarray, tile: int) -> np.ndarray:
    """Pairs of a group and a row tile it has rows in, in order.

    Args:
      sizes: int[g].
      tile: Rows of a tile.

    Returns:
      int[v, 2].
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
    """Of a grouped product in bfloat16 whose pipeline skips what it already holds.

    All the kernels compared walk column tiles, then (group, row tile) pairs, then the contracted
    tiles; the gradient of the weights walks the pairs last. Two cores share the first axis.

    Args:
      direction: Of `PASSES`; k is contracted and n wide in the first two, and in "to_rhs" the
        result is [k, n].
      sizes: Rows of each group.
      k: Contracted width, or the result's rows.
      n: Columns of the result.
      tile: Rows, k and n of a step.
      cores: That run the kernel.
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
    """Bytes of the blocks that differ from the one before; the last of an axis may be short."""
    blocks = np.stack(index, axis=1)
    changed = np.ones(len(blocks), bool)
    changed[1:] = np.any(blocks[1:] != blocks[:-1], axis=1)
    extents = np.minimum(block, np.asarray(whole) - blocks[changed] * np.asarray(block))
    return int(np.sum(np.prod(extents, axis=1))) * 2


def product_tile(direction: str, k: int, n: int, kernel: Kernel) -> Tile | None:
    """The tile a kernel was compiled with, by its windows; None if VMEM holds too much of it."""
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


# The list.


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile for a chip, and what it stands for.

    `op` is "gather_gemv" (the whole layer, whichever way), "grouped_matmul", or "tile" for a
    single `ragged_dot` of the layer with a pinned tile, of which the best is sought.
    """

    op: str
    implementation: str
    chip: str
    preset: str
    tokens: int
    dtype: str = "bfloat16"
    direction: str = "forward"
    matrix: str = ""  # "into" [d, f] or "out" [f, d]; "" for the layer
    tiles: tuple[Tile, ...] = ()  # pinned; a layer's are of gate and up, and of down

    @property
    def key(self) -> str:
        """Names the program among all others."""
        values = (str(value) for value in dataclasses.astuple(self))
        return " ".join(value.replace(" ", "") for value in values if value)

    @property
    def layer(self) -> shapes.Layer:
        """The layer it is (part) of."""
        return shapes.PRESETS[self.preset]

    @property
    def expert_bytes(self) -> int:
        """Bytes of the weights of the distinct experts chosen that it needs."""
        if self.op == "grouped_matmul":
            active = int(np.count_nonzero(self.sizes(self.tokens)))
            values = self.layer.expert_values // 3
        else:
            active = len(np.unique(shapes.choose(self.tokens, self.layer)))
            values = self.layer.expert_values // (3 if self.matrix else 1)
        return active * values * jnp.dtype(self.dtype).itemsize

    def sizes(self, tokens: int) -> np.ndarray:
        """Rows of each expert, int[e]."""
        if self.op == "grouped_matmul":
            return shapes.group_sizes(tokens, self.layer, DEVICE_EXPERTS[self.preset])
        chosen = shapes.choose(tokens, self.layer).reshape(-1)
        return np.bincount(chosen, minlength=self.layer.experts)

    def request(self) -> tuple[str, list[Any]]:
        """The builder and its arguments, as `tpu_schedule.analyse` takes them."""
        if self.op == "gather_gemv" and self.implementation == "tpu":
            return _builder(build_gather_gemv), [self.preset, self.tokens, self.dtype]
        if self.op == "gather_gemv":
            into, out = self.tiles or (None, None)
            return _builder(build_layer), [self.implementation, self.preset, self.tokens, into, out]
        k, n = self._widths()
        tile = self.tiles[0] if self.tiles else None
        sizes = self.sizes(self.tokens)
        rows = int(sizes.sum())
        rows += -rows % _ROWS  # XLA has its fast kernel for whole tiles only
        arguments = [self.implementation, self.direction, rows, k, n, len(sizes), tile]
        return _builder(build_product), arguments

    def _widths(self) -> tuple[int, int]:
        d, f = self.layer.dim, self.layer.ffn
        return (f, d) if self.matrix == "out" else (d, f)

    def work(self, kernel: Kernel, place: int, tokens: int) -> Work | None:
        """What one of its kernels has to do.

        Args:
          kernel: Its schedule.
          place: Which of the program's kernels that multiply it is, in order of execution.
          tokens: For how many tokens; those compiled for, or what a product of the same tile
            would have to do for others.

        Returns:
          None where the compiler's report does not tell the kernel's tile.
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
        # Within `emit_pipeline`, which tokamax is written with, one core works.
        cores = 1 if self.implementation == "tokamax" else CHIPS[self.chip].cores
        return product_work(self.direction, self.sizes(tokens), k, n, tile, cores)


def _builder(function: Callable[..., Built]) -> str:
    return f"pallas_kernels.programs:{function.__name__}"


_COMPARED = ("v5p", "v6e", "tpu7x")  # chips that the public kernels are pinned and tuned for
_TILE_ROWS = (16, 32, 64)  # the default is 128 or more
# Wide enough for HBM; larger blocks take the compiler minutes.
_TILE_WIDTHS = {"into": ((4096, 512), (2048, 1024)), "out": ((2048, 1024), (1024, 2048))}
# Tiles of the training products, contracted width and columns given as the kernel sees them.
_TRAINING_TILES = {
    "forward": ((512, 1024, 1024), (512, 4096, 512)),
    "to_lhs": ((512, 1024, 1024), (512, 2048, 1024)),
    "to_rhs": ((512, 1024, 1024), (512, 2048, 1024)),
}
_EIGHT_BIT_TOKENS = (1, 16, 64)


def layers(chips: Sequence[str]) -> list[Program]:
    """Whole layers that need nothing to be sought first."""
    found = []
    for chip in chips:
        ours = functools.partial(Program, "gather_gemv", "tpu", chip)
        public = functools.partial(Program, "gather_gemv", "ragged_dot", chip)
        found += [ours(preset, t) for preset in shapes.PRESETS for t in shapes.STEP_TOKENS]
        found += [ours("small", t, "int8") for t in _EIGHT_BIT_TOKENS]
        if chip == "tpu7x":
            found += [ours("small", t, "float8_e4m3fn") for t in _EIGHT_BIT_TOKENS]
        found += [public(preset, 16) for preset in ("demo", "base")]
        counts = shapes.STEP_TOKENS if chip in _COMPARED else (16,)
        found += [public("small", t) for t in counts]
    return found


def tiles(chips: Sequence[str]) -> list[Program]:
    """Single products of a layer of `small`, among whose tiles the best is sought."""
    tokens = shapes.STEP_TOKENS[-1]
    return [
        Program(
            "tile", "ragged_dot", chip, "small", tokens, matrix=matrix, tiles=((rows, *widths),)
        )
        for chip in chips
        if chip in _COMPARED
        for matrix, choices in _TILE_WIDTHS.items()
        for widths in choices
        for rows in _TILE_ROWS
    ]


def pinned_layers(chip: str, best: Callable[[str, int], Tile | None]) -> list[Program]:
    """Whole layers of `small` with the best tile found for their products.

    Args:
      chip: The chip.
      best: The tile for a matrix ("into" or "out") and a number of tokens, or None.
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
    """Grouped products at training's shapes, and their gradients."""
    found = []
    for chip in chips:
        for preset, layer in shapes.PRESETS.items():
            one = functools.partial(
                Program, "grouped_matmul", chip=chip, preset=preset, tokens=layer.train_tokens
            )
            for direction in PASSES:
                part = functools.partial(one, direction=direction)
                found += [part("tpu", matrix=matrix) for matrix in ("into", "out")]
                if preset != "small" or chip not in _COMPARED:
                    continue
                found.append(part("ragged_dot", matrix="into"))
                for tile in _TRAINING_TILES[direction]:
                    found += [
                        part(name, matrix="into", tiles=(tile,)) for name in ("megablox", "tokamax")
                    ]
    return found
