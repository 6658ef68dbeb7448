"""Reads the text of a compiled program: operations, collectives, kernels, estimated cycles."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Operation(NamedTuple):
    """One operation of a compiled program."""

    name: str
    opcode: str
    result: str  # type
    operands: tuple[str, ...]  # types, as far as they are known
    text: str  # the complete line
    scope: str  # `op_name`: the functions and named scopes in which it was traced
    loops: int  # number of enclosing loops
    runs: int  # runs in one execution of the program; a loop of unknown trips counts as one trip
    fused: bool  # whether it is part of a fusion, which has the estimate


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
    """Operations that an execution runs: those of the entry, and of all computations it calls.

    A computation is listed once for each place that calls it. All cases of a conditional are
    listed.
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
            # Operands are written as %name, or as type %name.
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
    """Trips of a loop that counts up by one to a constant, as scans do; otherwise None."""
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
    """One collective of a compiled program."""

    kind: str
    dtype: str
    shape: str  # of the result on a device, "[16,1024]"; several arrays are joined by "+"
    bytes: int  # bytes that a device sends, and receives, in each run
    group: int | None  # number of devices that exchange with each other
    loops: int  # number of enclosing loops
    runs: int  # runs in one execution; a loop of unknown trips counts as one trip
    scope: str  # the functions and named scopes in which it was traced


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program.

    Bytes are those of the best algorithm on a ring: (n-1)/n of the result of a group of n, and
    twice that for an all-reduce. The sizes of a ragged all-to-all are known only when it runs; its
    bytes are those of the smaller of operand and result, which an even load fills.
    """
    devices = re.search(r"num_partitions=(\d+)", hlo) or re.search(r"replica_count=(\d+)", hlo)
    rows = []
    for operation in operations(hlo):
        kind = operation.opcode.removesuffix("-start")
        if kind not in _KINDS or "calls=" in operation.text:  # a called computation is listed
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
    """Arrays of a collective's result, without the operands that a `-start` also has in it."""
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
    """A Mosaic kernel, of `pallas_kernels` or of XLA."""

    calls: int  # number of places that call it
    runs: int  # runs in one execution; a loop of unknown trips counts as one trip


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
    """XLA's estimate of the cycles of a program."""

    cycles: int
    estimated: int  # number of operations with an estimate
    kernels: int  # runs of Mosaic kernels, which have no estimate
    collectives: int  # runs of collectives, which have no estimate


_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = 2**62


def estimate(hlo: str) -> Estimate:
    """Sums `estimated_cycles` over one execution; a loop of unknown trips counts as one trip."""
    cycles = estimated = kernels = collectives = 0
    for operation in operations(hlo):
        runs = operation.runs
        if 'custom_call_target="tpu_custom_call"' in operation.text:
            kernels += runs
        elif operation.opcode.removesuffix("-start") in _KINDS:
            collectives += runs
        elif not operation.fused and (found := _CYCLES.search(operation.text)):
            if int(found[1]) < _UNKNOWN_CYCLES:
                cycles, estimated = cycles + int(found[1]) * runs, estimated + 1
    return Estimate(cycles, estimated, kernels, collectives)
