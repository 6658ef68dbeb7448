"""What a compiler made of a program: memory, collectives, kernels, estimates.

libtpu compiles for any TPU slice on a machine that has none. `topology` describes one by the name
it is rented under; the others read what `jax.jit(...).lower(...).compile()` returned.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

# Chips -> shape of the standard slice; chips with three-dimensional and two-dimensional networks.
_TORUS = {
    1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
    256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip
_GRID = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip


class _Generation(NamedTuple):
    shapes: Mapping[int, str]
    counted: int  # what N of its slices' names counts in a chip: cores, or the chip itself
    devices: int  # of JAX in a chip


_GENERATIONS = {
    "v4": _Generation(_TORUS, 2, 1),
    "v5e": _Generation(_GRID, 1, 1),
    "v5p": _Generation(_TORUS, 2, 1),
    "v6e": _Generation(_GRID, 1, 1),
    "tpu7x": _Generation(_TORUS, 2, 2),
}


class Slice(NamedTuple):
    """A TPU slice by name."""

    chip: str  # generation, "v5p"
    shape: str  # chips along each dimension, "2x4x4"

    @property
    def chips(self) -> int:
        """Chips in it."""
        return math.prod(int(size) for size in self.shape.split("x"))

    @property
    def devices_per_chip(self) -> int:
        """JAX devices that share a chip and its HBM."""
        return _GENERATIONS[self.chip].devices

    @property
    def devices(self) -> int:
        """JAX devices in it."""
        return self.chips * self.devices_per_chip


def find_slice(name: str) -> Slice:
    """The slice behind a name.

    Args:
      name: Of an accelerator, "v5p-64" (v4, v5p and tpu7x count cores, two a chip; v5e and v6e
        count chips), or a generation and a shape, "v5p:4x4x2".

    Raises:
      ValueError: No such generation, size or shape.
    """
    chip, _, rest = name.replace("-", ":", 1).partition(":")
    generation = _GENERATIONS.get(chip)
    if generation is None:
        raise ValueError(
            f"topology: got {name!r}, wanted one of {', '.join(_GENERATIONS)} with a size or a "
            "shape, such as v5p-64 or v5p:2x4x4"
        )
    dimensions = len(generation.shapes[1].split("x"))
    if re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), rest):
        return Slice(chip, rest)
    sizes = {f"{n * generation.counted}": shape for n, shape in generation.shapes.items()}
    if rest not in sizes:
        counted = "cores" if generation.counted > 1 else "chips"
        raise ValueError(
            f"topology: got {name!r}, wanted {chip}-N with N {counted} among {', '.join(sizes)}, "
            f"or {chip}:{generation.shapes[4]}"
        )
    return Slice(chip, sizes[rest])


def use_libtpu() -> None:
    """Lets libtpu load on a machine without a TPU; what the environment sets already stays."""
    for name, value in {
        # Without these libtpu asks the cloud where it runs, or waits for another process.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }.items():
        os.environ.setdefault(name, value)
    # libtpu is asked to compile; whatever runs, runs on the CPU.
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def topology(name: str) -> topologies.TopologyDescription:
    """Devices of a TPU slice to compile for, see `find_slice`.

    Raises:
      ValueError: No such slice.
      RuntimeError: libtpu is not installed.
    """
    found = find_slice(name)
    use_libtpu()
    options: dict[str, Any] = {}
    if found.chips == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    if found.chip == "v4":
        options["chip_config_name"] = "megacore"  # both cores are one device
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{found.chip}:{found.shape}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise RuntimeError(
                f"topology: libtpu does not load ({error}); install it: pip install jax[tpu]"
            ) from error
        raise ValueError(
            f"topology: got {name!r}, which libtpu does not know ({error}); choose another shape"
        ) from error


# Memory.


class Memory(NamedTuple):
    """Bytes of HBM on each device while the program runs."""

    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporaries: int
    code: int
    by_kind: dict[str, int]  # sums up to `peak`

    @property
    def peak(self) -> int:
        """All that is held at once, at most."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def bytes_per_device(tree: Any) -> int:  # noqa: ANN401
    """Bytes that each device holds of a tree of arrays, or of shapes, with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        total += math.prod(shape) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
    return total


def hbm(compiled: jax.stages.Compiled, arguments: Mapping[str, Any]) -> Memory:
    """Memory of a compiled program.

    Args:
      compiled: The program.
      arguments: Its arguments, arrays or `jax.ShapeDtypeStruct`s with shardings, by kind.

    Returns:
      The compiler's figures; `by_kind` adds to the arguments' kinds "padding" (what layouts add to
      arguments, less arguments that the program does not read), "outputs" that alias no argument,
      "temporaries" and "code".

    Raises:
      RuntimeError: The backend has no such figures.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise RuntimeError("memory: the backend does not say what the program takes")
    kinds = {kind: bytes_per_device(tree) for kind, tree in arguments.items()}
    size, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    aliased, temporaries = found.alias_size_in_bytes, found.temp_size_in_bytes
    code = found.generated_code_size_in_bytes
    kinds["padding"] = size - sum(kinds.values())
    kinds |= {"outputs": outputs - aliased, "temporaries": temporaries, "code": code}
    return Memory(size, outputs, aliased, temporaries, code, kinds)


# The HLO, read as text: what runs, how often, inside which loop.


class Operation(NamedTuple):
    """One operation of a compiled program, wherever it stands."""

    name: str
    opcode: str
    result: str  # type
    operands: tuple[str, ...]  # types, as far as they are known
    text: str  # the whole line
    scope: str  # `op_name`: the functions and named scopes it was traced in
    loops: int  # that it stands in
    runs: int  # in one execution of the program; loops of unknown trips make one
    fused: bool  # part of a fusion, which has the estimate


class _Line(NamedTuple):
    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]  # names
    text: str


_HEADER = re.compile(r"(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .* \{")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-<>]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(([^)]*)\)")
_CALLS = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%?[\w.\-<>]+)"
)
_BODY = re.compile(r"condition=%?([\w.\-<>]+), body=%?([\w.\-<>]+)")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"n":"(\d+)"\}')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_INSIDE = frozenset({"fusion", "call", "conditional", "async-start", "custom-call"})

_Computations = dict[str, dict[str, _Line]]


def operations(hlo: str) -> list[Operation]:
    """Operations that an execution runs: the entry's, and those of all that it calls.

    A computation that is called from several places is listed for each; of a conditional all
    branches are.
    """
    computations, entry = _computations(hlo)
    return list(_walk(computations, entry, 0, 1, False))


def _computations(hlo: str) -> tuple[_Computations, str]:
    found: _Computations = {}
    entry, lines = "", {}
    for text in hlo.splitlines():
        if header := _HEADER.match(text):
            lines = found.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line := _LINE.match(text):
            name, result, opcode, operands = line.groups()
            # Operands stand as %name, or as type %name.
            names = re.findall(r"%([\w.\-<>]+)", operands)
            lines[name] = _Line(name, result, opcode, tuple(names), text)
    return found, entry


def _walk(
    computations: _Computations, name: str, loops: int, runs: int, fused: bool
) -> Iterator[Operation]:
    lines = computations.get(name, {})
    for line in lines.values():
        scope = _SCOPE.search(line.text)
        types = tuple(lines[name].result for name in line.operands if name in lines)
        yield Operation(
            line.name,
            line.opcode,
            line.result,
            types,
            line.text,
            scope[1] if scope else "",
            loops,
            runs,
            fused,
        )
        if line.opcode == "while" and (body := _BODY.search(line.text)):
            trips = _trips(computations, lines, line, body[1])
            inner = runs if trips is None else runs * trips
            yield from _walk(computations, body[2], loops + 1, inner, fused)
        elif line.opcode in _INSIDE or line.opcode.endswith("-start"):
            within = fused or line.opcode == "fusion"
            for called in _CALLS.findall(line.text):
                for inside in re.findall(r"[\w.\-<>]+", called):
                    yield from _walk(computations, inside, loops, runs, within)


def _trips(
    computations: _Computations, lines: Mapping[str, _Line], loop: _Line, condition: str
) -> int | None:
    """Trips of a loop that counts up by one to a constant, as scans do."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    inside = computations.get(condition, {})
    for line in inside.values():
        if line.opcode != "compare" or "direction=LT" not in line.text or "ROOT" not in line.text:
            continue
        counter, limit = (inside.get(name) for name in line.operands)
        end = _constant(inside, limit)
        if counter is None or counter.opcode != "get-tuple-element" or end is None:
            return None
        index = re.search(r"index=(\d+)", counter.text)
        carry = lines.get(loop.operands[0]) if loop.operands else None
        start = None
        if index and carry and carry.opcode == "tuple" and int(index[1]) < len(carry.operands):
            start = _constant(lines, lines.get(carry.operands[int(index[1])]))
        return end - (start or 0)
    return None


def _constant(lines: Mapping[str, _Line], line: _Line | None) -> int | None:
    while line is not None and line.opcode in ("copy", "bitcast", "convert") and line.operands:
        line = lines.get(line.operands[0])
    found = re.search(r"constant\((-?\d+)\)", line.text) if line is not None else None
    return int(found[1]) if found else None


_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


class Collective(NamedTuple):
    """One exchange between devices."""

    kind: str
    dtype: str
    shape: str  # of the result on a device, "[16,1024]"; of several arrays joined by "+"
    bytes: int  # that a device sends, and receives, each time
    group: int | None  # devices that exchange with each other
    loops: int  # that it stands in
    runs: int  # in one execution; loops of unknown trips make one
    scope: str  # where in the code


def collectives(hlo: str) -> list[Collective]:
    """The exchanges of a compiled program.

    Bytes are those of the best algorithm for a ring: (n-1)/n of what a group of n ends up with,
    twice that for a sum that all get. The sizes of a ragged exchange are known when it runs: its
    bytes are what the smaller side has room for, as much as an even load takes.
    """
    devices = re.search(r"num_partitions=(\d+)", hlo) or re.search(r"replica_count=(\d+)", hlo)
    rows = []
    for operation in operations(hlo):
        kind = operation.opcode.removesuffix("-start")
        if kind not in _KINDS or "calls=" in operation.text:  # of the latter the inside counts
            continue
        arrays = _results(operation)
        group = _group(operation.text) or (int(devices[1]) if devices else None)
        rows.append(
            Collective(
                kind,
                arrays[0][0] if arrays else "",
                "+".join(f"[{shape}]" for _, shape in arrays),
                _moved(kind, arrays, operation, group),
                group,
                operation.loops,
                operation.runs,
                operation.scope,
            )
        )
    return rows


_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")


def _results(operation: Operation) -> list[tuple[str, str]]:
    """Arrays of a collective's result; that of a `-start` holds the operands as well."""
    arrays = _ARRAY.findall(operation.result)
    if operation.opcode == "all-gather-start":
        return arrays[len(arrays) // 2 :]
    return arrays[1:2] if operation.opcode == "collective-permute-start" else arrays


def _moved(
    kind: str, arrays: list[tuple[str, str]], operation: Operation, group: int | None
) -> int:
    size = sum(_size(*array) for array in arrays)
    others = group - 1 if group else 1
    if kind == "collective-permute" or not group:
        return size
    if kind == "reduce-scatter":
        return size * others
    if kind == "ragged-all-to-all" and operation.operands:
        size = min(size, sum(_size(*array) for array in _ARRAY.findall(operation.operands[0])))
    return size * others * (2 if kind == "all-reduce" else 1) // group


def _size(dtype: str, shape: str) -> int:
    bits = _BITS.match(dtype)
    values = math.prod(int(n) for n in shape.split(",") if n)
    return values * (int(bits[1]) if bits else 8) // 8


def _group(text: str) -> int | None:
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    return 2 if "source_target_pairs" in text else None


class Kernel(NamedTuple):
    """A Mosaic kernel: one of ours, or one of XLA's own made the same way."""

    calls: int  # places that it is called from
    runs: int  # in one execution; loops of unknown trips make one


def kernels(hlo: str) -> dict[str, Kernel]:
    """Mosaic kernels by name."""
    found: dict[str, Kernel] = {}
    for operation in operations(hlo):
        if 'custom_call_target="tpu_custom_call"' not in operation.text:
            continue
        name = re.sub(r"(\.(\d+|clone|remat\d*))+$", "", operation.name)
        before = found.get(name, Kernel(0, 0))
        found[name] = Kernel(before.calls + 1, before.runs + operation.runs)
    return found


class Estimate(NamedTuple):
    """XLA's own estimate of the operations that it made."""

    cycles: int
    estimated: int  # operations with an estimate
    kernels: int  # runs of Mosaic kernels, of which there is none
    collectives: int  # runs of exchanges, of which there is none


_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = 2**62


def estimate(hlo: str) -> Estimate:
    """Sums `estimated_cycles` over one execution; loops of unknown trips make one."""
    cycles = estimated = kernels = exchanges = 0
    for operation in operations(hlo):
        runs = operation.runs
        if 'custom_call_target="tpu_custom_call"' in operation.text:
            kernels += runs
        elif operation.opcode.removesuffix("-start") in _KINDS:
            exchanges += runs
        elif not operation.fused and (found := _CYCLES.search(operation.text)):
            if int(found[1]) < _UNKNOWN_CYCLES:
                cycles, estimated = cycles + int(found[1]) * runs, estimated + 1
    return Estimate(cycles, estimated, kernels, exchanges)
