"""Compiles the kernels for TPUs without a TPU and reports schedules, HBM traffic and comparisons.

    python -m pallas_kernels.compile_report --json=report.json --plot=report.png

Compiles our kernels and the public ones for v4, v5e, v5p, v6e and tpu7x and compares scheduled
compute time with HBM time. All programs take a few hours on two cores. Programs whose rows are in
the file are not compiled again, so that an interrupted run can be continued by the same command.

Needs libtpu (`pip install libtpu`). Tokamax is compared if it is installed.
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from absl import app, flags
from tqdm import tqdm

from pallas_kernels import programs, shapes
from pallas_kernels.builders import Tile
from pallas_kernels.chips import TPUS
from pallas_kernels.programs import COMPARED, Program, Work
from pallas_kernels.tpu_schedule import Kernel, Operation, Schedule, analyse

_CHIPS = flags.DEFINE_list("chips", list(TPUS), "Chips to compile for.")
_PRESETS = flags.DEFINE_list("presets", list(shapes.PRESETS), "Presets whose shapes are compiled.")
_OPS = flags.DEFINE_list("ops", ["gather_gemv", "grouped_matmul"], "Operations to compile.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["tpu", "ragged_dot", "megablox", "tokamax"], "Implementations to compile."
)
_JSON = flags.DEFINE_string("json", None, "File of the rows; rows in it are not computed again.")
_PLOT = flags.DEFINE_string("plot", None, "File of the plot.")

Row = dict[str, Any]

_JOBS = 2  # programs that are compiled at a time
_HBM_SHARE = 0.85  # share of the vendor's HBM bandwidth that large transfers reach
_KIND = (
    "compiled for TPU: compiled, launches, vmem_bytes, mxu; modelled from the compiled schedule "
    "and the trips and transfers of a skewed load: dma_bytes, dma_us, compute_us, estimate_us"
)


def figures(program: Program, schedule: Schedule, tokens: int) -> Row:
    """Figures of a compiled program for a number of tokens.

    Args:
      program: The program.
      schedule: Its schedule.
      tokens: Tokens of the step.

    Returns:
      Times in microseconds and bytes; None if the schedule lacks a kernel or its tile.
      `compute_us` and `dma_bytes` are those of operations that use the matrix unit, `other_us` is
      the time of all others: sorts, gathers, sums. `estimate_us` is the time of all operations,
      where each launch takes the longer of its compute time and its HBM time. `mxu` is the share of
      the matrix unit's slots that are used, `mxu_useful` the share of the device's FLOP/s that rows
      without padding use.
    """
    chip = TPUS[program.chip]
    compute = other = estimate = busy = 0.0
    moved = flops = place = 0
    known = True
    for operation in schedule.operations:
        kernel = schedule.kernels.get(operation.name)
        if kernel is None and operation.mosaic:
            known = False
            continue
        kernel = kernel or Kernel(0)
        if not (operation.mosaic or kernel.use.get("mxu")):
            seconds = _cycles(operation, kernel) / chip.clock_hz
            other, estimate = other + seconds, estimate + seconds
            continue
        work = _work(program, operation, kernel, place, tokens)
        place += bool(kernel.use.get("mxu"))
        if work is None:
            known = False
            continue
        cycles = kernel.total(work.trips) if operation.mosaic else _cycles(operation, kernel)
        seconds = cycles / chip.clock_hz
        compute += seconds
        busy += seconds * kernel.use.get("mxu", 0.0)
        moved, flops = moved + work.bytes, flops + work.flops
        estimate += max(seconds, work.bytes / (_HBM_SHARE * chip.device_hbm_bytes_per_s))
    if not known:
        uses = (kernel.use.get("mxu", 0.0) for kernel in schedule.kernels.values())
        return dict.fromkeys(_FIGURES) | {"mxu": max(uses, default=0.0)}
    useful = flops / (compute * chip.device_flops_per_s) if compute else 0.0
    values = (
        moved, moved / chip.device_hbm_bytes_per_s * 1e6, compute * 1e6, other * 1e6,
        estimate * 1e6, busy / compute if compute else 0.0, useful,
    )  # fmt: skip
    return dict(zip(_FIGURES, (round(value, 4) for value in values), strict=True))


_FIGURES = ("dma_bytes", "dma_us", "compute_us", "other_us", "estimate_us", "mxu", "mxu_useful")


def _work(
    program: Program, operation: Operation, kernel: Kernel, place: int, tokens: int
) -> Work | None:
    if not kernel.use.get("mxu"):
        return Work(1, 0)  # a kernel that prepares index lists for another kernel
    if not operation.mosaic:
        # XLA's estimate of a dense product includes its HBM traffic.
        return Work(1, 0, 2 * int(program.sizes(tokens).sum()) * program.layer.expert_values // 3)
    return program.work(kernel, place, tokens)


def _cycles(operation: Operation, kernel: Kernel) -> int:
    return operation.estimated_cycles or kernel.cycles


def make_row(program: Program, schedule: Schedule) -> Row:
    """The report's row of a compiled program."""
    kernels = [schedule.kernels.get(o.name) for o in schedule.operations if o.mosaic]
    row: Row = {
        "key": program.key,
        "op": program.op,
        "implementation": program.implementation,
        "chip": program.chip,
        "preset": program.preset,
        "tokens": program.tokens,
        "dtype": program.dtype,
        "direction": program.direction,
        "matrix": program.matrix,
        "tiles": program.tiles,
        "expert_bytes": program.expert_bytes,
        "compiled": schedule.compiled,
        "error": schedule.error,
        "compile_s": schedule.seconds,
        "launches": sum(o.mosaic for o in schedule.operations),
        "heavy_operations": sum(o.heavy for o in schedule.operations),
        "operations": len(schedule.operations),
        "vmem_bytes": max((k.vmem_bytes for k in kernels if k), default=0),
        "temporary_bytes": schedule.temporary_bytes,
        "kind": _KIND,
    }
    if not schedule.compiled:
        return row | dict.fromkeys(_FIGURES)
    row |= figures(program, schedule, program.tokens)
    if program.op == "tile":
        # The schedule of a tile does not depend on the number of rows.
        row["estimates"] = {
            str(t): figures(program, schedule, t)["estimate_us"] for t in shapes.STEP_TOKENS
        }
    return row


def version(program: Program) -> str:
    """The versions that a row depends on: of the compilers, and of our kernel's source."""
    parts = [jax.__version__]
    for package in ("libtpu", "tokamax"):
        try:
            parts.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            parts.append("none")
    if program.implementation == "tpu":
        folder = pathlib.Path(__file__).parent / program.op
        source = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
        parts.append(hashlib.sha256(source).hexdigest()[:12])
    return " ".join(parts)


class Report:
    """Rows by program, kept in a file."""

    def __init__(self, path: str | None) -> None:
        """Reads the rows in the file.

        Args:
          path: The file, which may be missing; None keeps the rows in memory only.
        """
        self._path = pathlib.Path(path) if path else None
        self._rows: dict[str, Row] = {}
        if self._path and self._path.exists():
            self._rows = {row["key"]: row for row in json.loads(self._path.read_text())}

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order in which they were added."""
        return list(self._rows.values())

    def lacks(self, program: Program) -> bool:
        """Whether there is no row of the program in its current version."""
        row = self._rows.get(program.key)
        return row is None or row["version"] != version(program)

    def add(self, program: Program, row: Row) -> None:
        """Adds a row and replaces the file atomically."""
        self._rows[program.key] = row | {"version": version(program)}
        if self._path:
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self.rows, indent=1))
            partial.replace(self._path)


def compile_all(
    wanted: Iterable[Program],
    report: Report,
    compiler: Callable[..., Schedule] = analyse,
) -> None:
    """Compiles the programs that the report lacks and adds their rows.

    Args:
      wanted: The programs.
      report: The report.
      compiler: Compiles a builder's program for a chip, as `tpu_schedule.analyse` does.
    """
    missing = [program for program in wanted if report.lacks(program)]
    with concurrent.futures.ThreadPoolExecutor(_JOBS) as pool:
        running = {pool.submit(compiler, *p.request(), p.chip): p for p in missing}
        finished = concurrent.futures.as_completed(running)
        for done in tqdm(finished, total=len(missing), desc="programs", unit="program"):
            report.add(running[done], make_row(running[done], done.result()))


def best_tile(rows: Sequence[Row], chip: str, matrix: str, tokens: int) -> Tile | None:
    """The tile with the least estimated time among the compiled products, or None."""
    found = [
        (row["estimates"][str(tokens)], tuple(row["tiles"][0]))
        for row in rows
        if row["op"] == "tile" and row["chip"] == chip and row["matrix"] == matrix
        if row["compiled"] and row["estimates"][str(tokens)] is not None
    ]
    return min(found)[1] if found else None


# Comparisons and targets.


def _select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if value < 10 else f"{value:.0f}"
        return "-" if value is None else str(value)

    cells = [list(header), *([cell(value) for value in line] for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in cells
    )


_PUBLIC = ("ragged_dot", "megablox", "tokamax")
_STEP_PRESET = "small"  # the preset that the targets are for
_STEP_LIMIT = 64  # tokens up to which HBM traffic and the share of compute have targets


def layer_comparison(rows: Sequence[Row]) -> list[Row]:
    """Compares our bfloat16 layer of `small` with the public ones, by chip and tokens."""
    layers = _select(rows, op="gather_gemv", preset=_STEP_PRESET, dtype="bfloat16", compiled=True)
    layers = [row for row in layers if row["estimate_us"] is not None]
    found = []
    for ours in _select(layers, implementation="tpu"):
        same = _select(layers, chip=ours["chip"], tokens=ours["tokens"])
        public = {
            (row["implementation"], bool(row["tiles"])): row
            for row in same
            if row["implementation"] != "tpu"
        }
        ragged = [row for (name, _), row in public.items() if name == "ragged_dot"]
        default = public.get(("ragged_dot", False))
        best = min((row["estimate_us"] for row in ragged), default=None)
        found.append({
            "chip": ours["chip"],
            "tokens": ours["tokens"],
            "launches": ours["launches"],
            "traffic": ours["dma_bytes"] / ours["expert_bytes"],
            "compute/dma": ours["compute_us"] / ours["dma_us"],
            "estimate_us": ours["estimate_us"],
            "ragged_dot_us": best,
            "to ragged_dot": ours["estimate_us"] / best if best else None,
            "compute to default": ours["compute_us"] / default["compute_us"] if default else None,
        } | {f"{name}_us": (public.get((name, True)) or {}).get("estimate_us")
             for name in ("megablox", "tokamax")})  # fmt: skip
    return found


def training_comparison(rows: Sequence[Row]) -> list[Row]:
    """Compares the matrix unit's use in the training products of `small`, with the best tiles."""
    found = []
    products = _select(rows, op="grouped_matmul", preset=_STEP_PRESET, compiled=True)
    for ours in _select(products, implementation="tpu"):
        same = {name: ours[name] for name in ("chip", "direction", "matrix")}
        line = {**same, "tpu": ours["mxu"], "estimate_us": ours["estimate_us"]}
        for name in _PUBLIC:
            others = _select(products, implementation=name, **same)
            line[name] = max((row["mxu"] for row in others if row["mxu"]), default=None)
            times = [row["estimate_us"] for row in others if row["estimate_us"]]
            line[f"{name}_us"] = min(times, default=None)
        found.append(line)
    return found


def targets(rows: Sequence[Row]) -> list[tuple[str, str, int, float | None, bool | None]]:
    """Targets beside the figures of the rows.

    Args:
      rows: Rows of a report.

    Returns:
      For each target: the quantity, the target, the number of values, the worst value, and whether
      it meets the target; the last two are None if there is no value.
    """
    layers, products = layer_comparison(rows), training_comparison(rows)
    near = [row for row in layers if row["tokens"] <= _STEP_LIMIT and row["chip"] in COMPARED]
    found = []

    def add(what: str, target: str, values: Iterable[float | None], most: float) -> None:
        known = [value for value in values if value is not None]
        worst = max(known, default=None)
        found.append((what, target, len(known), worst, None if worst is None else worst <= most))

    # A check of the report itself: less HBM traffic than weights means that a kernel is missing.
    whole = _select(rows, op="gather_gemv", preset=_STEP_PRESET)
    counted = [row["expert_bytes"] / row["dma_bytes"] for row in whole if row["dma_bytes"]]
    add("every layer: experts' bytes / bytes", "<= 1.0", counted, 1.0)
    ours = _select(rows, implementation="tpu")
    add("ours: fails to compile", "0", [int(not row["compiled"]) for row in ours], 0)
    add("gather_gemv: bytes / experts' bytes", "<= 1.02", [r["traffic"] for r in near], 1.02)
    for chip, most in {"v5p": 0.6, "v6e": 0.6, "tpu7x": 0.75}.items():
        values = [row["compute/dma"] for row in near if row["chip"] == chip]
        add(f"gather_gemv {chip}: compute / HBM time", f"<= {most}", values, most)
    add("gather_gemv: launches", "1", [row["launches"] for row in layers], 1)
    ratios = [row["to ragged_dot"] for row in layers]
    add("layer: time / best ragged_dot's", "<= 1.0", ratios, 1.0)
    on_v5p = [row["compute to default"] for row in layers if row["chip"] == "v5p"]
    add("layer v5p: compute / default ragged_dot's", "<= 0.5", on_v5p, 0.5)
    used = [row["tpu"] for row in products]
    least = min(used, default=None)
    met = None if least is None else least >= 0.8
    found.append(("grouped_matmul: matrix unit", ">= 0.80", len(used), least, met))
    behind = [
        row[name] / row["tpu"] for row in products for name in ("megablox", "tokamax") if row[name]
    ]
    add("grouped_matmul: best public use / ours", "<= 1.0", behind, 1.0)
    # The public kernels choose tiles by the number of rows, so they are not batch-invariant.
    for op, lines in (("gather_gemv", layers), ("grouped_matmul", products)):
        costs = [
            row["estimate_us"] / min(times)
            for row in lines
            if (times := [row[f"{name}_us"] for name in _PUBLIC if row[f"{name}_us"]])
        ]
        add(f"batch invariance, {op}: time / fastest public", "<= 1.05", costs, 1.05)
    return found


def summary(rows: Sequence[Row]) -> str:
    """The report as text: comparisons, targets, programs that did not compile."""
    parts = [f"{len(rows)} programs. {_KIND}"]
    for title, lines in (
        ("The whole layer, small, bfloat16", layer_comparison(rows)),
        ("Training's products, small: use of the matrix unit", training_comparison(rows)),
    ):
        if lines:
            ordered = sorted(lines, key=lambda line: [str(v).rjust(6) for v in line.values()][:3])
            parts.append(
                f"{title}\n" + _table(list(lines[0]), [list(line.values()) for line in ordered])
            )
    verdict = {True: "yes", False: "NO", None: "no value"}
    lines = [(*line, verdict[met]) for *line, met in targets(rows)]
    parts.append(_table(("quantity", "target", "values", "worst", "met"), lines))
    failed = [row for row in rows if not row["compiled"]]
    parts += [f"NOT COMPILED {row['key']}: {row['error'][:200]}" for row in failed]
    return "\n\n".join(parts)


def plot(rows: Sequence[Row], path: str) -> None:
    """Plots compute / HBM time, time / best `ragged_dot`'s, and the matrix unit's use.

    Args:
      rows: Rows of a report.
      path: File of the plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    layers = layer_comparison(rows)
    for chip in TPUS:
        lines = sorted(_select(layers, chip=chip), key=lambda row: row["tokens"])
        if not lines:
            continue
        tokens = [line["tokens"] for line in lines]
        left.plot(tokens, [line["compute/dma"] for line in lines], "o-", label=chip)
        lines = [line for line in lines if line["to ragged_dot"]]
        tokens = [line["tokens"] for line in lines]
        middle.plot(tokens, [line["to ragged_dot"] for line in lines], "o-", label=chip)
    for axes, title in ((left, "scheduled compute / HBM time"), (middle, "time / best ragged_dot")):
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set(xscale="log", xlabel="tokens", title=f"layer of small: {title} (modelled)")
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        if layers:
            axes.legend()
    products = _select(training_comparison(rows), matrix="into")
    names = [f"{row['chip']}\n{row['direction']}" for row in products]
    for offset, name in enumerate(("tpu", "ragged_dot", "megablox", "tokamax")):
        places = [place + 0.2 * offset for place in range(len(products))]
        right.bar(places, [row[name] or 0.0 for row in products], 0.2, label=name)
    right.axhline(0.8, color="grey", linewidth=0.8)
    right.set_xticks(range(len(products)), names, fontsize=6)
    right.set_title("grouped_matmul: matrix unit's use (compiled for TPU)")
    if products:
        right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _run(report: Report) -> None:
    chips, presets, implementations = _CHIPS.value, _PRESETS.value, _IMPLEMENTATIONS.value

    def compile_listed(found: Iterable[Program]) -> None:
        kept = [p for p in found if p.preset in presets and p.implementation in implementations]
        compile_all(kept, report)

    if "gather_gemv" in _OPS.value:
        compile_listed(programs.layers(chips))
        compile_listed(programs.tiles(chips))
        for chip in chips:
            best = functools.partial(best_tile, report.rows, chip)
            compile_listed(programs.pinned_layers(chip, best))
    if "grouped_matmul" in _OPS.value:
        compile_listed(programs.training(chips))


def main(arguments: Sequence[str]) -> None:
    """Compiles the programs, writes their rows and prints the summary."""
    if len(arguments) > 1:
        raise app.UsageError(f"got {arguments[1:]}, wanted flags only")
    report = Report(_JSON.value)
    _run(report)
    print(summary(report.rows))
    if _PLOT.value:
        plot(report.rows, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
