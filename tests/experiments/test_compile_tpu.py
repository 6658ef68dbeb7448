"""The command that compiles for TPUs: its programs, printed text and errors."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments import compile_tpu
from experiments.compile_tpu import STEP, TRAIN, DoesNotFitError, Request
from interaction.compiled.hlo import Collective
from interaction.distributed import sharding
from interaction.presets import PRESETS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install interaction[tpu]"
)


def _request(what: str, **changes: object) -> Request:
    inputs = compile_tpu.INPUTS
    return Request("tiny", what, "v5p-16", {}, 0, 8, 1, None, inputs)._replace(**changes)


def test_mesh_flag() -> None:
    assert compile_tpu.parse_mesh(["expert=4", " fsdp=2"]) == {"expert": 4, "fsdp": 2}
    assert compile_tpu.parse_mesh([]) == {}
    with pytest.raises(ValueError, match="wanted axis=size"):
        compile_tpu.parse_mesh(["expert"])


@pytest.mark.parametrize("devices", [1, 16, 64, 256, 512, 2048])
@pytest.mark.parametrize("what", [STEP, TRAIN])
def test_default_meshes_use_all_devices_and_divide_the_model(devices: int, what: str) -> None:
    config = PRESETS["small"]()
    request = compile_tpu.complete(_request(what, preset="small"), config, devices)
    mesh = sharding.abstract_mesh(request.mesh)
    assert mesh.size == devices
    build = compile_tpu.train_program if what == TRAIN else compile_tpu.step_program
    program = build(config, request, mesh)
    assert request.sessions >= (32 if what == STEP else devices)
    assert all(leaf.sharding is not None for leaf in jax.tree.leaves(program.kinds))


def test_a_session_for_each_device_that_sessions_are_split_over() -> None:
    config = PRESETS["tiny"]()
    tensor = _request(STEP, mesh={"expert": 4, "tensor": 2})
    assert compile_tpu.complete(tensor, config, 8).sessions == 32
    train = _request(TRAIN, mesh={"fsdp": 4, "sequence": 2}, accumulate=3)
    assert compile_tpu.complete(train, config, 8).sessions == 12
    assert compile_tpu.complete(train._replace(sessions=24), config, 8).sessions == 24
    with pytest.raises(ValueError, match="--sessions: got 6, wanted a multiple of the 4"):
        compile_tpu.complete(tensor._replace(sessions=6), config, 8)


def test_a_program_that_cannot_fit_is_refused_before_compilation() -> None:
    config = PRESETS["tiny"]()
    for what, build in ((TRAIN, compile_tpu.train_program), (STEP, compile_tpu.step_program)):
        request = compile_tpu.complete(_request(what, mesh={"expert": 4, "data": 2}), config, 8)
        mesh = sharding.make_mesh(request.mesh)
        program = build(config, request, mesh)
        with pytest.raises(DoesNotFitError, match="the largest part is") as refusal:
            compile_tpu.compile_program(program, mesh, 1_000)
        kinds = refusal.value.by_kind
        assert f"largest part is {max(kinds, key=kinds.__getitem__)} " in str(refusal.value)
    assert kinds["parameters"] > 0
    assert kinds["state"] > 0


def test_the_message_of_a_compiler_out_of_memory_is_read() -> None:
    short = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    short += "temporaries (36.50G) exceeds available HBM (31.25G)."
    assert compile_tpu.out_of_memory(short) == (int(36.5 * 2**30), int(31.25 * 2**30))
    used = "Ran out of memory in memory space hbm. Used 31.25G of 31.00G hbm."
    assert compile_tpu.out_of_memory(used) == (int(31.25 * 2**30), 31 * 2**30)
    long = f"{used} Exceeded hbm capacity by 4.56M.\nTotal hbm usage >= 31.50G:\n reserved 260.03M"
    assert compile_tpu.out_of_memory(long) == (int(31.5 * 2**30), 31 * 2**30)
    assert compile_tpu.out_of_memory("RESOURCE_EXHAUSTED: hbm") == (0, 0)


def _row() -> dict:
    gather = Collective(
        "all-gather", "bf16", "[8,16]", 128, 4, 1, 3,
        "jit(step)/shard_map/while/body/closed_call/experts/gather_expert/all_gather",
    )  # fmt: skip
    backward = gather._replace(
        kind="reduce-scatter", runs=1, shape="[4]+[4]",
        scope="jit(f)/shard_map/transpose(jvp(gather_fsdp))/reduce_scatter",
    )  # fmt: skip
    bare = gather._replace(kind="all-reduce", loops=0, runs=1, scope="")
    return {
        **_request(STEP, mesh={"expert": 4}, sessions=32)._asdict(),
        "chips": 4, "devices": 4, "compiled": True, "compile_s": 3.2, "host_bytes": 2e9,
        "hbm_capacity_bytes": 8 << 30, "hbm_bytes_per_chip": 3 << 30,
        "hbm_by_kind": {"state": 1 << 30, "parameters": 2 << 30},
        "collectives": [row._asdict() for row in (gather, gather, backward, bare)],
        "kernels": {"gather_gemv": {"calls": 1, "runs": 3}},
        "estimate": {"seconds": 0.002, "cycles": 3_500_000, "estimated": 7, "kernels": 3,
                     "collectives": 8},
    }  # fmt: skip


def test_table() -> None:
    text = compile_tpu.table(_row())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("tiny step, 32 sessions, on v5p-16: 4 chips, 4 devices, mesh exp")
    assert lines[1] == "HBM per chip: 3.00 GiB of 8, 37.5%"
    assert lines[2] == "parameters 2.000 GiB"
    assert "0.00 MB 6 x all-gather of 4 layers bf16[8,16] experts/gather_expert" in lines
    assert "0.00 MB 1 x reduce-scatter of 4 layers bf16, 2 arrays gather_fsdp, backward" in lines
    assert "0.00 MB 1 x all-reduce of 4 once bf16[8,16] -" in lines
    assert "Mosaic kernels: gather_gemv x 3" in lines
    assert any("it excludes 3 runs of kernels and 8 collectives" in line for line in lines)
    refused = compile_tpu.table(_row() | {"compiled": False})
    assert "collectives" not in refused


def _run(tmp_path: pathlib.Path, *given: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compile_tpu", f"--json={out}", *given],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return done, json.loads(out.read_text()) if out.exists() else {}


@needs_libtpu
def test_the_step_compiles_for_a_slice(tmp_path: pathlib.Path) -> None:
    flags = ("--preset=tiny", "--topology=v5p-8", "--what=step", "--inputs=")
    done, row = _run(tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert row["compiled"] and row["sessions"] == 32 and row["mesh"]["expert"] == 4
    assert 0 < row["hbm_bytes_per_chip"] < row["hbm_capacity_bytes"] == 95 << 30
    assert row["hbm_bytes_per_chip"] == sum(row["hbm_by_kind"].values())
    assert row["kernels"]["gather_gemv"]["runs"] == PRESETS["tiny"]().transformer.layers
    inside = {entry["kind"] for entry in row["collectives"] if entry["loops"]}
    assert inside == {"all-gather", "all-to-all"}
    assert "HBM per chip" in done.stdout


@needs_libtpu
def test_the_train_step_compiles_for_a_slice(tmp_path: pathlib.Path) -> None:
    flags = ("--preset=tiny", "--topology=v6e-4", "--what=train", "--turns=8")
    done, row = _run(tmp_path, *flags, "--mesh=fsdp=2,expert=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert row["compiled"] and row["sessions"] == 4
    kinds = row["hbm_by_kind"]
    assert kinds["optimizer"] > kinds["parameters"] >= kinds["averages"] > 0
    scopes = {compile_tpu.scope_of(Collective(**entry)) for entry in row["collectives"]}
    assert {"gather_fsdp", "gather_fsdp, backward", "sum_gradients"} <= scopes
    done, again = _run(tmp_path, *flags, "--mesh=fsdp=2,expert=2", "--remat=everything")
    assert "recomputing everything" in done.stdout and row["remat"] == "nothing"
    assert again["hbm_by_kind"]["temporaries"] < kinds["temporaries"]


@needs_libtpu
def test_a_program_that_does_not_fit_is_refused_with_its_largest_part(
    tmp_path: pathlib.Path,
) -> None:
    done, row = _run(tmp_path, "--preset=small", "--topology=v5p-8", "--what=train")
    assert done.returncode == 1
    assert "small train on v5p-8 does not fit" in done.stderr
    assert "the largest part is optimizer" in done.stderr
    assert row["compiled"] is False
    assert row["hbm_bytes_per_chip"] > row["hbm_capacity_bytes"]
    done, row = _run(tmp_path / "none", "--preset=tiny", "--topology=v9-8")
    assert done.returncode == 1 and not row
    assert "compile_tpu: topology: got 'v9-8', wanted one of v4" in done.stderr
