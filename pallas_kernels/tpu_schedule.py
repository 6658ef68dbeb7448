"""Schedules of programs that are compiled for TPUs without a TPU.

libtpu compiles for any TPU on any machine. With the dump options it writes the schedule of each
kernel as VLIW bundles with stalls, the use of each unit, the contents of VMEM, and the HLO. A child
process compiles, because libtpu reads its options once per process.

Accuracy against published measurements: scheduled cycles × trips / clock is 0.96 to 1.04 of the
measured time for dense products and 0.6 to 1.0 for grouped ones; VMEM sizes are exact.
"""

import dataclasses
import glob
import hashlib
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import topologies

from pallas_kernels.chips import TPUS


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a schedule; `cycles` is one trip in which inner loops run once."""

    depth: int  # 1 is outermost
    start: int  # index of its first bundle
    cycles: int


@dataclasses.dataclass(frozen=True)
class Window:
    """A block of an operand that a kernel's pipeline keeps in VMEM."""

    output: bool
    operand: int  # index among the inputs, or among the outputs
    dtype: str
    block: tuple[int, ...]  # shape of the block
    whole: tuple[int, ...]  # shape of the operand
    bytes: int  # of one buffer
    buffers: int  # 2 if the pipeline is double-buffered


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The schedule of one Mosaic kernel or HLO operation."""

    cycles: int  # each bundle counts once; of two exclusive branches only the longer one counts
    loops: tuple[Loop, ...] = ()
    dma: Mapping[str, int] = dataclasses.field(default_factory=dict)  # direction -> bytes, once
    use: Mapping[str, float] = dataclasses.field(default_factory=dict)  # unit -> share of slots
    vmem_bytes: int = 0
    windows: tuple[Window, ...] = ()

    def total(self, trips: int, inner: Sequence[int] = ()) -> int:
        """Cycles of a whole run.

        Args:
          trips: Trips of the longest outermost loop, which is the loop over the grid.
          inner: Trips of the loops inside it, in order; 1 for further loops.
        """
        outer = [loop for loop in self.loops if loop.depth == 1]
        if not outer:
            return self.cycles
        grid = max(outer, key=lambda loop: loop.cycles)
        body = grid.cycles
        within = [
            loop
            for loop in self.loops
            if loop.depth == 2 and grid.start <= loop.start < grid.start + grid.cycles
        ]
        for loop, times in zip(within, inner, strict=False):
            body += loop.cycles * (times - 1)
        return self.cycles - grid.cycles + body * trips


@dataclasses.dataclass(frozen=True)
class Operation:
    """One scheduled operation of the compiled HLO."""

    name: str
    opcode: str
    mosaic: bool  # a Pallas kernel, or a kernel of XLA that is compiled by Mosaic
    heavy: bool  # a Mosaic kernel, gather, scatter, sort, dot, loop or similar
    estimated_cycles: int | None  # by XLA; None for kernels
    # Equal for operations that differ in their names only, which libtpu may compile once.
    signature: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A compiled program, or the `error` of the compiler."""

    kernels: Mapping[str, Kernel] = dataclasses.field(default_factory=dict)
    operations: tuple[Operation, ...] = ()
    flops: float = 0.0  # counted by XLA
    temporary_bytes: int = 0  # in HBM
    vmem_capacity: int = 0
    seconds: float = 0.0  # time of compilation
    error: str | None = None

    @property
    def compiled(self) -> bool:
        """Whether the program compiled."""
        return self.error is None


_BUNDLE = re.compile(r"\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*((?:> ?)*)\{(\})?")
_DMA = re.compile(r"= dma\.(\w+)[^;]*?/\*size_in_granules=\*/(\d+)")
_BRANCH = re.compile(r"sbr\.rel \((!?)%(p\w+)\) target bundleno = (\d+)")
_COMPARE = re.compile(r"%(p\w+) = scmp\.(eq|ne|lt|ge|gt|le)\.(\S+) ([^/;}]*)")
_NEGATE = re.compile(r"%(p\w+) = pneg %(p\w+)")
_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
_SHORTEST_LOOP = 8  # bundles; shorter loops are not of the program


def parse_bundles(text: str, granule: int = 32) -> Kernel:
    """Parses a `packed-bundles-post-ra` dump, in which each row is one bundle and one cycle.

    Args:
      text: The dump.
      granule: Bytes of the unit in which the dump counts transfers.
    """
    depths: list[int] = []
    dma: dict[str, int] = {}
    branches: list[tuple[int, int, object]] = []
    predicates: dict[str, object] = {}
    for line in text.splitlines():
        if row := _BUNDLE.match(line):
            # An empty bundle is a stall; its row does not show the loop depth.
            stall = row[3] and depths
            depths.append(depths[-1] if stall else row[2].count(">"))
        if "BoundsCheck" in line:  # the row repeats the transfer that it checks
            continue
        for direction, granules in _DMA.findall(line):
            dma[direction] = dma.get(direction, 0) + int(granules) * granule
        for name, comparison, kind, operands in _COMPARE.findall(line):
            predicates[name] = (comparison, kind, operands.strip())
        for name, other in _NEGATE.findall(line):
            predicates[name] = _negated(predicates.get(other, (other,)))
        for negation, name, target in _BRANCH.findall(line):
            condition = predicates.get(name, (name,))
            condition = _negated(condition) if negation else condition
            if int(target) > len(depths):
                branches.append((len(depths) - 1, int(target), condition))
    spared = _spared(branches)
    return Kernel(len(depths) - sum(s for _, s in spared), _loops(depths, spared), dma)


def _negated(condition: object) -> object:
    if isinstance(condition, tuple) and condition[0] in _OPPOSITE:
        return (_OPPOSITE[condition[0]], *condition[1:])
    if isinstance(condition, tuple) and condition[0] == "not":
        return condition[1]
    return ("not", condition)


def _spared(branches: Sequence[tuple[int, int, object]]) -> list[tuple[int, int]]:
    """Cycles of branches that do not run because the other branch does: (bundle, cycles) pairs.

    A conditional is compiled to two ranges of bundles. Each is skipped by a jump, on opposite
    conditions. The longer range is taken to run.
    """
    spared = []
    for start, target, condition in branches:
        for other_start, other_target, other in branches:
            if target <= other_start <= target + _SHORTEST_LOOP and other == _negated(condition):
                spared.append((start, min(target - start, other_target - other_start)))
    return spared


def _loops(depths: Sequence[int], spared: Sequence[tuple[int, int]]) -> tuple[Loop, ...]:
    loops = []
    for depth in range(1, max(depths, default=0) + 1):
        start = None
        for row, here in enumerate([*depths, 0]):
            if here >= depth and start is None:
                start = row
            elif here < depth and start is not None:
                less = sum(cycles for at, cycles in spared if start <= at < row)
                if row - start > _SHORTEST_LOOP:
                    loops.append(Loop(depth, start, row - start - less))
                start = None
    return tuple(loops)


_UNITS = ("mxu", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill", "salu")


def parse_use(text: str) -> dict[str, float]:
    """Parses a `pre-delay` utilisation dump: a row of capacities, then the used slots per bundle.

    Returns:
      For each unit, the share of its slots that are used.
    """
    numbers = [line.split() for line in text.splitlines() if re.fullmatch(r"[0-9 ]*[0-9] *", line)]
    if len(numbers) < 2:
        return {}
    capacity, *rows = (np.asarray(row, int) for row in numbers)
    shares = np.sum(rows, axis=0) / (capacity * len(rows))
    return {unit: round(float(share), 4) for unit, share in zip(_UNITS, shares, strict=True)}


_WINDOW = re.compile(
    r"(input|output) window allocation for operator \w+ (\d+)\. The window shape is "
    r"(\w+)\[([\d,]*)\], while the full shape is \w+\[([\d,]*)\].*?"
    r"(?:allocation has (\d+) buffering level|allocation is single buffered|$)",
    re.DOTALL,
)


def parse_vmem(text: str) -> tuple[int, dict[str, tuple[int, tuple[Window, ...]]]]:
    """Parses the VMEM report, an HTML page that contains a JSON object.

    Returns:
      The capacity in bytes, and for each kernel the bytes that it uses and its windows in the order
      of the operands.
    """
    start = text.find("const DATA =")
    if start < 0:
        return 0, {}
    data, _ = json.JSONDecoder().raw_decode(text[start + len("const DATA =") :].lstrip())
    kernels = {}
    for name, entry in data["hlo_breakdowns"].items():
        windows = []
        for block in entry["blocks"]:
            for allocation in block.get("allocations", ()):
                if found := _WINDOW.search(allocation.get("tag", "")):
                    windows.append(_window(found, allocation["size"]))
        windows.sort(key=lambda window: (window.output, window.operand))
        kernels[name] = entry["total_size"], tuple(windows)
    return data["global_info"]["vmem_capacity"], kernels


def _window(found: re.Match[str], size: int) -> Window:
    def shape(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in text.split(",") if n)

    side, operand, dtype, block, whole, buffers = found.groups()
    buffered = int(buffers or 1)
    return Window(
        side == "output",
        int(operand),
        dtype,
        shape(block),
        shape(whole),
        size // buffered,
        buffered,
    )


_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-<>]+) \(.*\) -> .* \{")
_OPERATION = re.compile(r"\s+(?:ROOT )?%([\w.\-<>]+) = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(calls|body|to_apply|branch_computations)=\{?%([\w.\-<>]+)")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = 2**62
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id "
    "copy-done async-done".split()
)
_HEAVY = frozenset(
    "gather scatter sort dot ragged-dot convolution while conditional dynamic-slice "
    "dynamic-update-slice".split()
)


def parse_hlo(text: str) -> tuple[Operation, ...]:
    """Lists the operations of the entry computation, with those of each loop's body once."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    return tuple(_operations(computations, entry))


def _operations(computations: Mapping[str, list[str]], name: str) -> list[Operation]:
    operations = []
    for line in computations.get(name, ()):
        found = _OPERATION.match(line)
        if found is None or found[2] in _FREE:
            continue
        called = {kind: other for kind, other in _CALLED.findall(line)}
        opcodes = {found[2]}
        if found[2] == "fusion" and "calls" in called:
            inside = (_OPERATION.match(other) for other in computations.get(called["calls"], ()))
            opcodes |= {other[2] for other in inside if other}
        mosaic = 'custom_call_target="tpu_custom_call"' in line
        if found[2] == "custom-call" and not mosaic:
            continue  # internal operations of the compiler, which cost nothing
        estimate = _ESTIMATE.search(line)
        cycles = int(estimate[1]) if estimate else _UNKNOWN_CYCLES
        operations.append(
            Operation(
                found[1],
                found[2],
                mosaic,
                mosaic or bool(opcodes & _HEAVY),
                cycles if cycles < _UNKNOWN_CYCLES else None,
                _signature(line, computations.get(called.get("calls", ""), ())),
            )
        )
        if found[2] in ("while", "call", "conditional"):
            operations += _operations(
                computations, called.get("body") or called.get("to_apply", "")
            )
    return operations


_NAMES = re.compile(r"%[\w.\-<>]+|metadata=\{[^}]*\}")


def _signature(line: str, inside: Sequence[str]) -> str:
    return hashlib.sha256(_NAMES.sub("", "\n".join([line, *inside])).encode()).hexdigest()[:16]


_DUMPED = "packed-bundles-post-ra.txt"
_NAME = re.compile(
    r"^\d+-(.*)-\d+-[^-]*(?:pre-delay_hlo-static-per-bundle-utilization|packed-bundles-post-ra)\.txt$"
)


def read(folder: pathlib.Path, granule: int = 32) -> Schedule:
    """Reads the files that the compiling process wrote.

    Args:
      folder: Where they are.
      granule: See `parse_bundles`.
    """
    outcome = json.loads((folder / "outcome.json").read_text())
    capacity, vmem = 0, {}
    for report in glob.glob(str(folder / "*vmem_report.html")):
        capacity, vmem = parse_vmem(pathlib.Path(report).read_text())
    use = {}
    for path in folder.glob("*-static-per-bundle-utilization.txt"):
        if name := _NAME.match(path.name):
            use[name[1]] = parse_use(path.read_text())
    kernels = {}
    for path in folder.glob(f"*-{_DUMPED}"):
        name = _NAME.match(path.name)
        if name is None or "schedule-analysis" in path.name or name[1] in ("TLP",):
            continue
        size, windows = vmem.get(name[1], (0, ()))
        kernels[name[1]] = dataclasses.replace(
            parse_bundles(path.read_text(), granule),
            use=use.get(name[1], {}),
            vmem_bytes=size,
            windows=windows,
        )
    operations = parse_hlo((folder / "hlo.txt").read_text())
    first = {o.signature: kernels[o.name] for o in operations if o.name in kernels}
    for operation in operations:
        if operation.name not in kernels and operation.signature in first:
            kernels[operation.name] = first[operation.signature]
    return Schedule(kernels, operations, vmem_capacity=capacity, **outcome)


_PASSES = ".*(packed-bundles-post-ra|pre-delay_hlo-static|vmem_report).*"
_TIMEOUT = 900  # s; longer compilations come from blocks that are too large to be useful


def analyse(build: str, arguments: Sequence[object], chip: str) -> Schedule:
    """Compiles a program for one JAX device of a chip in a child process and reads its schedule.

    Args:
      build: "module:function" of a builder, which the child calls with `arguments`. It returns the
        function to compile and its operands, a tuple of trees of `jax.ShapeDtypeStruct`. It is
        called under a mesh of the one device, from which kernels read their target.
      arguments: Arguments of the builder, as JSON types.
      chip: One of `chips.TPUS`.

    Returns:
      The schedule; it has an `error` if the program does not trace or compile.

    Raises:
      ValueError: The chip is unknown.
    """
    if chip not in TPUS:
        raise ValueError(f"chip={chip!r}, wanted one of {', '.join(TPUS)}")
    with tempfile.TemporaryDirectory(prefix="schedule_") as folder:
        request = json.dumps([build, list(arguments), chip, folder])
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pallas_kernels.tpu_schedule", request],
                env=_environment(folder),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Schedule(error=f"not compiled after {_TIMEOUT} s")
        if not (pathlib.Path(folder) / "outcome.json").exists():
            last = done.stderr.strip()[-2000:]
            return Schedule(error=f"the compiler ended with {done.returncode}: {last}")
        return read(pathlib.Path(folder), TPUS[chip].dma_granule)


def _environment(folder: str) -> dict[str, str]:
    dumps = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
        f"--xla_jf_dump_llo_pass_label_regex={_PASSES}"
    )
    return os.environ | {
        "LIBTPU_INIT_ARGS": dumps,
        # Without these, libtpu queries the cloud's metadata server or waits for other processes.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "JAX_PLATFORMS": "cpu",
    }


def _compile(build: str, arguments: Sequence[object], chip: str, folder: pathlib.Path) -> dict:
    module, function = build.split(":")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TPUS[chip].topology)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("device",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    started = time.monotonic()
    with jax.set_mesh(mesh):
        program, operands = getattr(importlib.import_module(module), function)(*arguments)
        operands = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), operands
        )
        compiled = jax.jit(program).lower(*operands).compile()
    (folder / "hlo.txt").write_text(compiled.as_text() or "")
    return {
        "flops": float((compiled.cost_analysis() or {}).get("flops", 0.0)),
        "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0),
        "seconds": round(time.monotonic() - started, 2),
    }


def main() -> None:
    """Runs in the child process of `analyse`: compiles the program of the command line."""
    build, arguments, chip, folder = json.loads(sys.argv[1])
    path = pathlib.Path(folder)
    try:
        outcome = _compile(build, arguments, chip, path)
    except Exception as error:
        # Any exception of the compiler or of a kernel is reported to the parent process.
        (path / "hlo.txt").write_text("")
        outcome = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
    (path / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
