"""The report's parsers and sums, on short texts in the formats of libtpu; needs no libtpu."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pallas_kernels import builders, compile_report, programs, shapes, tpu_schedule
from pallas_kernels.chips import TPUS
from pallas_kernels.programs import Program
from pallas_kernels.tpu_schedule import Kernel, Loop, Operation, Schedule, Window

# A loop of 40 bundles, four of them stalls. One of two branches runs, of 10 or of 12 bundles.
_BODY = {
    10: "%p1_p2 = scmp.eq.s32.totalorder %s1_s1, 3 ;; %p2_p3 = scmp.ne.s32.totalorder %s1_s1, 3",
    11: "%9 = sbr.rel (%p2_p3) target bundleno = 21 (0x15), region = 4",
    21: "%8 = sbr.rel (%p1_p2) target bundleno = 33 (0x21), region = 5",
    34: "%7 = dma.hbm_to_vmem /*hbm=*/%s1, /*size_in_granules=*/64, /*vmem=*/%s2",
    35: "%6 = shalt.err (%p9) /* BoundsCheck 1 for %7 = dma.hbm_to_vmem /*size_in_granules=*/64 */",
}


def _bundles() -> str:
    rows = ["LH: loop header", "", "     0   :  { %s0 = sld [smem:[#allocation0]] }"]
    for row in range(1, 50):
        label = f"{row:#x}".rjust(6)
        if row in (15, 16, 36, 37):
            rows.append(f"{label}   :  {{}}")
        elif 5 <= row < 45:
            rows.append(
                f"{label} {'LB' if row == 5 else '  '}: > {{ {_BODY.get(row, '%s1 = smov 1')} }}"
            )
        else:
            rows.append(f"{label}   :  {{ %s1 = smov 1 }}")
    return "\n".join(rows)


def test_a_bundle_or_stall_is_a_cycle_and_one_of_two_branches_runs() -> None:
    kernel = tpu_schedule.parse_bundles(_bundles())
    assert kernel.cycles == 50 - 10
    assert kernel.loops == (Loop(1, 5, 40 - 10),)
    assert kernel.dma == {"hbm_to_vmem": 64 * 32}
    assert tpu_schedule.parse_bundles(_bundles(), 512).dma == {"hbm_to_vmem": 64 * 512}
    assert kernel.total(1) == 40
    assert kernel.total(7) == 10 + 7 * 30


def test_branches_on_independent_conditions_both_run() -> None:
    text = _bundles().replace("(%p1_p2) target", "(%p7_p2) target")
    assert tpu_schedule.parse_bundles(text).cycles == 50


def test_inner_loops_run_their_given_trips() -> None:
    kernel = Kernel(100, (Loop(1, 10, 80), Loop(2, 20, 30), Loop(2, 60, 20)))
    assert kernel.total(3) == 20 + 3 * 80
    assert kernel.total(3, (4, 2)) == 20 + 3 * (80 + 3 * 30 + 20)


def test_use_is_the_share_of_slots() -> None:
    text = "== CAPACTIY:\nMXU, XLU, ...\n    4 3 4 2 1 3 3 1 1 2\n== UTILIZATION:\n"
    text += "4 0 0 0 0 0 0 0 0 1\n2 3 0 0 0 0 0 0 0 1\n"
    use = tpu_schedule.parse_use(text)
    assert (use["mxu"], use["xlu"], use["salu"]) == (0.75, 0.5, 0.5)
    assert tpu_schedule.parse_use("== CAPACTIY:\n") == {}


def _vmem_report() -> str:
    def window(side: str, number: int, block: str, whole: str, size: int, buffers: str) -> dict:
        tag = (
            f"{side} window allocation for operator {side} {number}. The window shape is {block}, "
            f"while the full shape is {whole}. The u8 shape/size shown above represents the raw "
            f"byte size of this window in VMEM. {buffers}"
        )
        return {"padding": 0, "size": size, "tag": tag}

    double = "This allocation has 2 buffering levels."
    allocations = [
        window("output", 0, "f32[8,128]", "f32[16,128]", 8192, double),
        window("input", 5, "bf16[1,64,128]", "bf16[4,64,256]", 32768, double),
        window("input", 2, "bf16[8,64]", "bf16[8,64]", 1024, ""),
        {"padding": 0, "size": 512, "tag": "SPILL"},
    ]
    data = {
        "global_info": {"module_name": "jit_f", "vmem_capacity": 1 << 20},
        "hlo_breakdowns": {"k.1": {"blocks": [{"allocations": allocations}], "total_size": 42496}},
    }
    return f"<script>\n const DATA ={json.dumps(data, indent=1)};\n const x = 1;</script>"


def test_vmem_report_gives_windows_in_operands_order() -> None:
    capacity, kernels = tpu_schedule.parse_vmem(_vmem_report())
    assert capacity == 1 << 20
    size, windows = kernels["k.1"]
    assert size == 42496
    assert windows == (
        Window(False, 2, "bf16", (8, 64), (8, 64), 1024, 1),
        Window(False, 5, "bf16", (1, 64, 128), (4, 64, 256), 16384, 2),
        Window(True, 0, "f32", (8, 128), (16, 128), 4096, 2),
    )
    assert tpu_schedule.parse_vmem("<html></html>") == (0, {})


_HLO = """HloModule jit_f, is_scheduled=true

%inside (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %g = f32[8]{0} gather(%a, %a), offset_dims={}
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  ROOT %copy.1 = (s32[], f32[8]{0}) copy(%b), backend_config={"estimated_cycles":"40"}
}

ENTRY %main.9 (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0:T(128)} parameter(0)
  %plain = f32[8]{0} add(%x.1, %x.1), backend_config={"estimated_cycles":"2120"}
  %fused = f32[8]{0} fusion(%plain), kind=kLoop, calls=%inside, backend_config={UNKNOWN}
  %loop = (s32[], f32[8]{0}) while(%fused), condition=%other, body=%body
  %start = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %k.1 = (f32[8]{0}, s32[2]{0}) custom-call(%fused), custom_call_target="tpu_custom_call"
  ROOT %out = f32[8]{0} get-tuple-element(%k.1), index=0
}
""".replace("UNKNOWN", '"estimated_cycles":"9223372036854775807"')


def test_operations_of_the_compiled_program() -> None:
    assert tpu_schedule.parse_hlo(_HLO) == (
        Operation("plain", "add", False, False, 2120),
        Operation("fused", "fusion", False, True, None),
        Operation("loop", "while", False, True, None),
        Operation("copy.1", "copy", False, False, 40),
        Operation("k.1", "custom-call", True, True, None),
    )


def _dump(folder: pathlib.Path) -> None:
    (folder / "12-k.1-01-packed-bundles-post-ra.txt").write_text(_bundles())
    (folder / "12-k.1-00-schedule-analysis_packed-bundles-post-ra.txt").write_text("analysis")
    (folder / "12-k.1-02-pre-delay_hlo-static-per-bundle-utilization.txt").write_text(
        "4 3 4 2 1 3 3 1 1 2\n1 0 0 0 0 0 0 0 0 0\n"
    )
    (folder / "11-TLP-01-packed-bundles-post-ra.txt").write_text(_bundles())
    (folder / "11-TLP-04-vmem_report.html").write_text(_vmem_report())
    (folder / "hlo.txt").write_text(_HLO)


def test_a_folder_of_dumps_is_read_as_a_schedule(tmp_path: pathlib.Path) -> None:
    _dump(tmp_path)
    outcome = {"flops": 3.0, "temporary_bytes": 5, "seconds": 1.5}
    (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    schedule = tpu_schedule.read(tmp_path)
    assert schedule.compiled
    assert list(schedule.kernels) == ["k.1"]
    kernel = schedule.kernels["k.1"]
    assert (kernel.cycles, kernel.use["mxu"], kernel.vmem_bytes) == (40, 0.25, 42496)
    assert len(kernel.windows) == 3
    assert (schedule.flops, schedule.vmem_capacity) == (3.0, 1 << 20)


def test_a_kernel_compiled_once_for_two_launches_counts_twice(tmp_path: pathlib.Path) -> None:
    _dump(tmp_path)
    (tmp_path / "outcome.json").write_text("{}")
    call = next(line for line in _HLO.splitlines() if "%k.1 =" in line)
    alike = call.replace("%k.1", "%k.2").replace("(%fused)", "(%plain)")
    other = call.replace("%k.1", "%k.3").replace("f32[8]{0}, s32[2]", "f32[9]{0}, s32[2]")
    text = _HLO.replace(call, "\n".join([call, alike, other]))
    (tmp_path / "hlo.txt").write_text(text)
    kernels = tpu_schedule.read(tmp_path).kernels
    assert kernels["k.2"] == kernels["k.1"]
    assert "k.3" not in kernels


def test_an_unknown_chip_is_refused() -> None:
    with pytest.raises(ValueError, match="chip='v9', wanted one of v4"):
        tpu_schedule.analyse("a:b", [], "v9")


def test_a_program_that_does_not_build_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without libtpu the child fails before it builds. With libtpu it finds no such function.
    schedule = tpu_schedule.analyse("pallas_kernels.builders:missing", [], "v5e")
    assert not schedule.compiled
    assert schedule.error

    def dies(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([sys.executable], -11, "", "a fault\nin the compiler")

    monkeypatch.setattr(subprocess, "run", dies)
    schedule = tpu_schedule.analyse("pallas_kernels.builders:missing", [], "v5e")
    assert schedule.error == "the compiler ended with -11: a fault\nin the compiler"


def test_visits_are_pairs_of_groups_and_row_tiles() -> None:
    sizes = np.array([3, 0, 6, 7])
    assert programs.visits(sizes, 4).tolist() == [[0, 0], [2, 0], [2, 1], [2, 2], [3, 2], [3, 3]]
    assert programs.visits(np.zeros(4, int), 8).shape == (0, 2)


@pytest.mark.parametrize("cores", [1, 2])
def test_bytes_of_a_product_equal_a_simulation_of_its_grid(cores: int) -> None:
    sizes, k, n, (tm, tk, tn) = np.array([3, 0, 6, 7]), 24, 40, (4, 8, 16)
    pairs = [(0, 0), (2, 0), (2, 1), (2, 2), (3, 2), (3, 3)]
    columns = [[0, 1, 2]] if cores == 1 else [[0, 1], [2]]
    moved = 0
    for mine in columns:
        held: dict[str, tuple] = {}
        for j in mine:
            width = min(tn, n - j * tn)
            for group, row in pairs:
                for inner in range(3):
                    blocks = {
                        "lhs": ((row, inner), tm * tk),
                        "rhs": ((group, inner, j), tk * width),
                        "out": ((row, j), tm * width),
                    }
                    for name, (index, values) in blocks.items():
                        if held.get(name) != index:
                            held[name] = index
                            moved += 2 * values
    work = programs.product_work("forward", sizes, k, n, (tm, tk, tn), cores)
    assert work.bytes == moved
    assert work.trips == len(columns[0]) * len(pairs) * 3
    assert work.flops == 2 * 16 * 24 * 40


def test_weight_gradient_writes_a_block_once_per_group() -> None:
    sizes = np.array([8, 8])
    work = programs.product_work("to_rhs", sizes, 16, 32, (4, 16, 16), 1)
    lhs, grad, out = 2 * 16 * 16, 16 * 32, 2 * 16 * 32  # lhs per column tile, the others once
    assert work.bytes == 2 * (lhs + grad + out)
    assert work.trips == 2 * 4


def _windows(experts: int, d: int, f: int, block: int) -> tuple[Window, ...]:
    into = Window(False, 4, "bf16", (1, d, block), (experts, d, f), 2 * d * block, 2)
    out = Window(False, 6, "bf16", (1, block, d), (experts, f, d), 2 * d * block, 2)
    return Window(False, 1, "bf16", (16, d), (16, d), 32 * d, 1), into, into, out


@pytest.mark.parametrize(("chip", "cores"), [("v5p", 2), ("v6e", 1)])
def test_layer_reads_each_chosen_expert_once(chip: str, cores: int) -> None:
    layer = shapes.PRESETS["small"]
    kernel = Kernel(100, (), windows=_windows(layer.experts, layer.dim, layer.ffn, 512))
    program = Program("gather_gemv", "tpu", chip, "small", 16)
    work = program.work(kernel, 0, 16)
    active = len(np.unique(shapes.choose(16, layer)))
    assert work is not None
    assert work.trips == active * 4 // cores
    assert work.bytes == program.expert_bytes + cores * 32 * layer.dim
    assert program.expert_bytes == active * 3 * 4096 * 2048 * 2
    assert programs.gather_gemv_work("small", 16, chip, Kernel(100)) is None
    # A schedule that loads the weights twice in a step counts twice.
    twice = dataclasses.replace(kernel, dma={"hbm_to_vmem": 6 * 4096 * 512 * 2 + 32 * layer.dim})
    work = program.work(twice, 0, 16)
    assert work is not None
    assert work.bytes == 2 * program.expert_bytes + cores * 32 * layer.dim


def test_tile_is_read_from_windows_of_both_orientations() -> None:
    out = Window(True, 0, "bf16", (32, 128), (64, 512), 0, 2)
    plain = Window(False, 5, "bf16", (1, 256, 128), (8, 1024, 512), 0, 2)
    turned = Window(False, 5, "bf16", (1, 128, 256), (8, 512, 1024), 0, 2)
    for weights in (plain, turned):
        kernel = Kernel(1, windows=(weights, out))
        assert programs.product_tile("forward", 1024, 512, kernel) == (32, 256, 128)
    assert programs.product_tile("forward", 1024, 512, Kernel(1, windows=(out,))) is None
    lhs = Window(False, 4, "bf16", (16, 256), (64, 1024), 0, 2)
    outer = Window(True, 0, "bf16", (1, 256, 128), (8, 1024, 512), 0, 2)
    kernel = Kernel(1, windows=(lhs, outer))
    assert programs.product_tile("to_rhs", 1024, 512, kernel) == (16, 256, 128)


def test_every_program_has_a_unique_key_and_a_valid_request() -> None:
    chips = list(TPUS)
    found = programs.layers(chips) + programs.tiles(chips) + programs.training(chips)
    found += programs.pinned_layers("v6e", lambda matrix, tokens: (16, 1024, 512))
    keys = [program.key for program in found]
    assert len(set(keys)) == len(keys)
    for program in found:
        build, arguments = program.request()
        module, _, function = build.partition(":")
        assert module == builders.__name__ and callable(getattr(builders, function))
        json.dumps(arguments)
    ours = {(p.chip, p.preset) for p in found if p.implementation == "tpu"}
    assert len(ours) == len(chips) * len(shapes.PRESETS)


def _schedule(cycles: int, mxu: float = 0.5) -> Schedule:
    layer = shapes.PRESETS["small"]
    windows = _windows(layer.experts, layer.dim, layer.ffn, 512)
    kernel = Kernel(cycles, (Loop(1, 0, cycles),), {}, {"mxu": mxu}, 7_000_000, windows)
    operations = (
        Operation("sort", "sort", False, True, None),
        Operation("sum", "fusion", False, False, 3500),
        Operation("k", "custom-call", True, True, None),
    )
    return Schedule({"k": kernel, "sort": Kernel(1750)}, operations)


def test_figures_add_up() -> None:
    program = Program("gather_gemv", "tpu", "v6e", "small", 1)
    row = compile_report.make_row(program, _schedule(4000))
    steps, chip = 6 * 4, TPUS["v6e"]  # experts of a token, blocks of each
    assert row["launches"] == 1
    assert (row["operations"], row["heavy_operations"]) == (3, 2)
    assert row["compute_us"] == pytest.approx(steps * 4000 / 1750)
    assert row["other_us"] == pytest.approx(3.0)
    assert row["dma_us"] == pytest.approx(row["dma_bytes"] / chip.device_hbm_bytes_per_s * 1e6)
    assert row["estimate_us"] == pytest.approx(row["dma_us"] / 0.85 + 3.0)
    assert (row["mxu"], row["vmem_bytes"], row["compiled"]) == (0.5, 7_000_000, True)
    slow = compile_report.make_row(program, _schedule(40_000))
    assert slow["estimate_us"] == pytest.approx(slow["compute_us"] + 3.0)
    bare = _schedule(4000)
    bare = dataclasses.replace(bare, kernels={"k": Kernel(10, use={"mxu": 0.4})})
    unknown = compile_report.make_row(program, bare)
    assert (unknown["compiled"], unknown["mxu"], unknown["estimate_us"]) == (True, 0.4, None)
    # A kernel without a schedule makes the figures unknown; its cost is not taken as 0.
    unseen = dataclasses.replace(_schedule(4000), kernels={"sort": Kernel(1750)})
    assert compile_report.make_row(program, unseen)["dma_bytes"] is None
    failed = compile_report.make_row(program, Schedule(error="VMEM overflows"))
    assert (failed["compiled"], failed["error"]) == (False, "VMEM overflows")
    assert failed["compute_us"] is None


def test_report_compiles_only_missing_programs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Program("gather_gemv", "tpu", "v6e", "small", tokens) for tokens in (1, 2, 4)]
    compiled: list[int] = []

    def compiler(build: str, arguments: list, chip: str) -> Schedule:
        compiled.append(arguments[1])
        return _schedule(4000)

    path = str(tmp_path / "report.json")
    compile_report.compile_all(wanted[:2], compile_report.Report(path), compiler)
    assert sorted(compiled) == [1, 2]
    again = compile_report.Report(path)
    compile_report.compile_all(wanted, again, compiler)
    assert sorted(compiled) == [1, 2, 4]
    rows = json.loads(pathlib.Path(path).read_text())
    assert sorted(row["tokens"] for row in rows) == [1, 2, 4]
    monkeypatch.setattr(compile_report, "version", lambda program: "another kernel")
    assert all(again.lacks(program) for program in wanted)


def _rows() -> list[dict]:
    rows = []
    for tokens in (1, 64):
        ours = Program("gather_gemv", "tpu", "v5p", "small", tokens)
        rows.append(compile_report.make_row(ours, _schedule(4000)))
        for tiles, factor in (((), 3.0), (((32, 2048, 1024),) * 2, 2.0)):
            public = Program("gather_gemv", "ragged_dot", "v5p", "small", tokens, tiles=tiles)
            times = {
                name: rows[-1 - bool(tiles)][name] * factor
                for name in ("compute_us", "estimate_us")
            }
            rows.append(rows[-1 - bool(tiles)] | times | {
                "key": public.key, "implementation": "ragged_dot", "tiles": tiles, "launches": 4,
            })  # fmt: skip
    for name, use in (("tpu", 0.85), ("megablox", 0.9), ("megablox", 0.7)):
        part = Program("grouped_matmul", name, "v5p", "small", 8192, matrix="into")
        rows.append(rows[0] | {
            "key": f"{part.key} {use}", "op": "grouped_matmul", "implementation": name,
            "direction": "forward", "matrix": "into", "mxu": use,
        })  # fmt: skip
    return rows


def test_targets_compare_with_the_best_public_kernel(tmp_path: pathlib.Path) -> None:
    rows = _rows()
    layer = compile_report.layer_comparison(rows)
    assert [line["to ragged_dot"] for line in layer] == pytest.approx([0.5, 0.5])
    assert [line["compute to default"] for line in layer] == pytest.approx([1 / 3, 1 / 3])
    (product,) = compile_report.training_comparison(rows)
    assert (product["tpu"], product["megablox"], product["tokamax"]) == (0.85, 0.9, None)
    met = {what: met for what, *_, met in compile_report.targets(rows)}
    assert {met for *_, met in compile_report.targets([])} == {None}
    assert met["layer: time / best ragged_dot's"] is True
    assert met["grouped_matmul: matrix unit"] is True
    assert met["grouped_matmul: best public use / ours"] is False
    assert met["gather_gemv v6e: compute / HBM time"] is None
    assert met["every layer: experts' bytes / bytes"] is True
    lost = [rows[0] | {"dma_bytes": rows[0]["expert_bytes"] // 3 * 2}]
    assert compile_report.targets(lost)[0][-1] is False
    broken = rows[0] | {"key": "x", "compiled": False, "error": "too much VMEM"}
    text = compile_report.summary([*rows, broken])
    assert "NOT COMPILED x: too much VMEM" in text
    assert "NO" in text
    compile_report.plot(rows, str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_best_tile_is_per_chip_matrix_and_tokens() -> None:
    def row(chip: str, matrix: str, tile: list[int], one: float, many: float) -> dict:
        estimates = {str(t): one if t == 1 else many for t in shapes.STEP_TOKENS}
        return {"op": "tile", "chip": chip, "matrix": matrix, "tiles": [tile], "compiled": True,
                "estimates": estimates}  # fmt: skip

    rows = [
        row("v5p", "into", [16, 2048, 1024], 1.0, 9.0),
        row("v5p", "into", [64, 2048, 1024], 2.0, 3.0),
        row("v6e", "into", [32, 2048, 1024], 0.5, 0.5),
        row("v5p", "out", [32, 1024, 2048], 0.5, 0.5),
    ]
    assert compile_report.best_tile(rows, "v5p", "into", 1) == (16, 2048, 1024)
    assert compile_report.best_tile(rows, "v5p", "into", 128) == (64, 2048, 1024)
    assert compile_report.best_tile(rows, "v4", "into", 1) is None
