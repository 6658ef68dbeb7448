"""Times the kernels of the experts on this machine and compares them with other implementations.

python -m pallas_kernels.bench --json=out/kernels.json --plot=out/kernels.png

On a CPU: the XLA implementations at the demo's shapes, compared with the references and with
implementations that are not batch-invariant. On a GPU: the Pallas kernels at the shapes of `base`,
compared with `jax.lax.ragged_dot` and, if it is installed, PyTorch and its compiler. Candidates
alternate, so that other load on the machine affects all of them alike; times are medians.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from pallas_kernels import bench_baselines as baselines
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.shapes import PRESETS, STEP_TOKENS, choose, group_sizes
from pallas_kernels.timing import Candidate, Case, Row, in_one_program, median_times

_DEMO_TOKENS = (3, 24)  # tokens of a step of one session, and of eight
_REPETITIONS = 50
_CALLS = 32  # calls in one program, so that the time to start it is relatively small
_COPIED = 1 << 29  # float32 values that are copied to measure the bandwidth
_SIDE = 8192  # rows and columns of the matrices whose product measures the FLOP/s

Product = Callable[..., jax.Array]  # of lhs, rhs and group sizes


def gather_gemv_rows(
    preset: str, tokens: int, dtype: str, repetitions: int, copy_rate: float | None = None
) -> list[Row]:
    """Times `gather_gemv`. Each call uses other experts, so that their weights are not cached.

    Args:
      preset: One of `shapes.PRESETS`.
      tokens: Tokens of a step.
      dtype: Dtype of tokens and weights.
      repetitions: Runs of each candidate.
      copy_rate: Bytes per second that a copy moves, on a GPU; None on a CPU.

    Returns:
      One row for each candidate.
    """
    layer = PRESETS[preset]
    keys = jax.random.split(jax.random.key(0), 5)
    e, d, f, k = layer.experts, layer.dim, layer.ffn, layer.experts_per_token
    shapes = ((e, d, f), (e, d, f), (e, f, d))
    matrices = [
        jax.random.normal(key, shape, dtype) / shape[1] ** 0.5
        for key, shape in zip(keys[:3], shapes, strict=True)
    ]
    x, ids = jax.random.normal(keys[3], (tokens, d), dtype), choose(tokens, layer)
    arguments = x, jnp.asarray(ids), jax.random.uniform(keys[4], ids.shape), *matrices

    def candidate(function: Callable[..., jax.Array]) -> Candidate:
        def call(i, x, ids, *others):  # noqa: ANN001, ANN002, ANN202
            return function(x, (ids + i * k) % e, *others)

        return in_one_program(call, _CALLS, *arguments)

    def implementation(name: str) -> Candidate:
        return candidate(lambda *a: gather_gemv(*a, implementation=name))

    if copy_rate is None:
        ours, candidates = "xla", {"xla": implementation("xla")}
        candidates["reference"] = implementation("reference")
        all_rows = candidate(baselines.gather_gemv_all_rows)
        candidates["all rows per expert, not batch-invariant"] = all_rows
    else:
        ours, candidates = "gpu", {"gpu": implementation("gpu")}
        candidates["three ragged_dot"] = candidate(baselines.gather_gemv_ragged_dot)
        each = [(arguments[1] + i * k) % e for i in range(_CALLS)]
        candidates |= baselines.torch_gather_gemv(x, each, *arguments[2:])
    size = len(np.unique(ids)) * layer.expert_values * jnp.dtype(dtype).itemsize
    floor = size / copy_rate if copy_rate else None
    case = Case("gather_gemv", ours, preset, tokens, dtype, _CALLS, floor, size)
    return case.rows(candidates, repetitions)


def grouped_matmul_rows(
    preset: str, dtype: str, repetitions: int, flop_rate: float | None = None
) -> list[Row]:
    """Times `grouped_matmul` and its gradient on the rows of a training step.

    Args:
      preset: One of `shapes.PRESETS`.
      dtype: Dtype of rows and weights.
      repetitions: Runs of each candidate.
      flop_rate: FLOP/s of a large product, on a GPU; None on a CPU.

    Returns:
      One row for each candidate, without and with gradients.
    """
    layer = PRESETS[preset]
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = group_sizes(layer.train_tokens, layer, layer.experts)
    rows = int(sizes.sum())
    lhs = jax.random.normal(keys[0], (rows, layer.dim), dtype)
    rhs = jax.random.normal(keys[1], (layer.experts, layer.dim, layer.ffn), dtype)
    cotangent = jax.random.normal(keys[2], (rows, layer.ffn), dtype)
    calls = 1 if flop_rate is None else _CALLS
    rolled = [np.roll(sizes, i) for i in range(calls)]

    def forward(function: Product, i, lhs, rhs, sizes, _):  # noqa: ANN001, ANN202
        return function(lhs, rhs, sizes[i])

    def backward(function: Product, i, lhs, rhs, sizes, cotangent):  # noqa: ANN001, ANN202
        out, pull = jax.vjp(lambda a, b: function(a, b, sizes[i]), lhs, rhs)
        return out, pull(cotangent)

    functions = _cpu_products(sizes) if flop_rate is None else _gpu_products()
    found: list[Row] = []
    for call, suffix, work in ((forward, "", 2), (backward, " with gradients", 6)):
        arguments = lhs, rhs, jnp.stack(rolled), cotangent
        candidates = {
            name: in_one_program(functools.partial(call, function), calls, *arguments)
            for name, function in functions.items()
        }
        if flop_rate is not None and call is forward:
            ends = [jnp.asarray(np.cumsum(s), jnp.int32) for s in rolled]
            candidates |= baselines.torch_grouped_matmul(lhs, rhs, ends)
        op, ours = f"grouped_matmul{suffix}", next(iter(functions))
        floor = work * rows * layer.dim * layer.ffn / flop_rate if flop_rate else None
        case = Case(op, ours, preset, layer.train_tokens, dtype, calls, floor)
        found += case.rows(candidates, repetitions)
    return found


def _cpu_products(sizes: np.ndarray) -> dict[str, Product]:
    def known(lhs: jax.Array, rhs: jax.Array, _: jax.Array) -> jax.Array:
        return baselines.grouped_matmul_known_sizes(lhs, rhs, sizes)

    return {
        "xla": functools.partial(grouped_matmul, implementation="xla"),
        "reference": functools.partial(grouped_matmul, implementation="reference"),
        "known sizes, not batch-invariant": known,
    }


def _gpu_products() -> dict[str, Product]:
    ours = functools.partial(grouped_matmul, implementation="gpu")
    return {"gpu": ours, "ragged_dot": jax.lax.ragged_dot}


def cpu_rows(repetitions: int) -> list[Row]:
    """Times all candidates of a CPU."""
    found: list[Row] = []
    for tokens in tqdm(_DEMO_TOKENS, "gather_gemv"):
        found += gather_gemv_rows("demo", tokens, "float32", repetitions)
    return found + grouped_matmul_rows("demo", "float32", repetitions)


def gpu_rows(repetitions: int) -> list[Row]:
    """Times all candidates of a GPU; shares refer to the bandwidth and FLOP/s measured first."""
    copied = jnp.ones(_COPIED, jnp.float32)
    square = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE), jnp.bfloat16)
    copy, product = jax.jit(lambda a: a + 1), jax.jit(jnp.dot)
    seconds = median_times(
        {
            "copy": lambda: jax.block_until_ready(copy(copied)),
            "product": lambda: jax.block_until_ready([product(square, square) for _ in range(8)]),
        },
        repetitions,
    )
    copy_rate = 2 * copied.nbytes / seconds["copy"]
    flop_rate = 8 * 2 * _SIDE**3 / seconds["product"]
    print(f"copy {copy_rate / 1e12:.2f} TB/s, bfloat16 product {flop_rate / 1e12:.0f} TFLOP/s")
    found = grouped_matmul_rows("base", "bfloat16", repetitions, flop_rate)
    for tokens in tqdm(STEP_TOKENS, "gather_gemv"):
        found += gather_gemv_rows("base", tokens, "bfloat16", repetitions, copy_rate)
    return found


def table(rows: list[Row]) -> str:
    """The rows as a text table."""
    lines = [
        f"{'op':<30}{'implementation':<40}{'tokens':>7}{'time_us':>12}{'share':>8}{'ratio':>8}"
    ]
    for row in rows:
        share = "" if row.share is None else f"{row.share:.2f}"
        lines.append(
            f"{row.op:<30}{row.implementation:<40}{row.tokens:>7}{row.time_us:>12.1f}"
            f"{share:>8}{row.ratio:>8.2f}"
        )
    return "\n".join([*lines, rows[0].label])


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Plots the times over the tokens, with one panel for each op."""
    import matplotlib.pyplot as plt

    ops = list(dict.fromkeys(row.op for row in rows))
    figure, panels = plt.subplots(1, len(ops), figsize=(6 * len(ops), 5), layout="constrained")
    for op, panel in zip(ops, np.ravel(panels), strict=True):
        mine = [row for row in rows if row.op == op]
        for name in dict.fromkeys(row.implementation for row in mine):
            points = [(str(row.tokens), row.time_us) for row in mine if row.implementation == name]
            panel.plot(*zip(*points, strict=True), marker="o", label=name)
        panel.set(title=f"{op}, {mine[0].preset}, {mine[0].dtype}", xlabel="tokens", yscale="log")
        panel.set_ylabel("µs per call")
        panel.legend(fontsize="small")
    figure.suptitle(rows[0].label)
    figure.savefig(path)
    plt.close(figure)


def main(argv: list[str]) -> None:
    """Prints the rows and writes the files that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu"):
        raise app.UsageError(f"no benchmark for {backend}; see pallas_kernels.compile_report")
    rows = cpu_rows(_REPETITIONS) if backend == "cpu" else gpu_rows(_REPETITIONS)
    print(table(rows))
    to_json, to_plot = (
        name and pathlib.Path(name) for name in (flags.FLAGS.json, flags.FLAGS.plot)
    )
    for path in (to_json, to_plot):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    if to_json:
        to_json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    if to_plot:
        draw(rows, to_plot)


if __name__ == "__main__":
    flags.DEFINE_string("json", None, "File of the rows.")
    flags.DEFINE_string("plot", None, "File of the plot, for example out/kernels.png.")
    app.run(main)
