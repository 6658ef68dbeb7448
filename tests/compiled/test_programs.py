"""Readers of compiled programs: short texts, programs for fake devices, one for real TPUs."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from interaction.compiled import device_memory, hlo, topology
from interaction.compiled.hlo import Collective, Kernel
from interaction.compiled.slices import find_slice

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install interaction[tpu]"
)


@pytest.mark.parametrize(
    ("name", "chip", "shape", "chips", "devices"),
    [
        ("v5p-64", "v5p", "2x4x4", 32, 32),
        ("v5p-2048", "v5p", "8x8x16", 1024, 1024),
        ("v5p:4x4x2", "v5p", "4x4x2", 32, 32),
        ("v4-8", "v4", "2x2x1", 4, 4),
        ("v5e-16", "v5e", "4x4", 16, 16),
        ("v6e-64", "v6e", "8x8", 64, 64),
        ("v6e-1", "v6e", "1x1", 1, 1),
        ("tpu7x-16", "tpu7x", "2x2x2", 8, 16),
        ("tpu7x-2048", "tpu7x", "8x8x16", 1024, 2048),
        ("v6e-1024", "v6e", "", 1024, 1024),
        ("h200-8", "h200", "", 8, 8),
    ],
)
def test_slices_by_name(name: str, chip: str, shape: str, chips: int, devices: int) -> None:
    found = find_slice(name)
    assert (found.chip.name, found.shape) == (chip, shape)
    assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9-8", "wanted one of v4, v5e, v5p, v6e, tpu7x"),
        ("v5p-3", "N TensorCores, two a chip, or v5p:2x2x1"),
        ("v5p-0", "N TensorCores"),
        ("tpu7x--2", "N TensorCores"),
        ("v5p", "or v5p:2x2x1"),
        ("v5p:2x2", "or v5p:2x2x1"),
        ("v6e:2x2x1", "or v6e:2x2"),
    ],
)
def test_unknown_slices_name_the_choices(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_slice(name)


@pytest.mark.parametrize("name", ["h200-8", "v6e-512", "v5p-12"])
def test_what_libtpu_has_no_shape_for_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"standard shape.*v5p:2x2x1"):
        topology.topology(name)


# Shortened output of compilers for TPU: an asynchronous gather in a loop of three trips that a
# condition limits, a kernel in a fusion, wrapped and ragged collectives.
_HLO = """
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: s32[], b: s32[]) -> s32[] {
  ROOT %add.1 = s32[] add(%a, %b)
}

%condition (p: (s32[], bf16[4,128])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte = s32[]{:T(128)} get-tuple-element(%p), index=0
  %limit = s32[]{:T(128)} constant(4), metadata={op_name="jit(f)"}
  ROOT %lt = pred[]{:T(512)} compare(%gte, %limit), direction=LT
}

%wrapped (a: bf16[8,128]) -> bf16[2,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %rs = bf16[2,128]{1,0} reduce-scatter(%a), replica_groups=[2,4]<=[8], to_apply=%add
}

%fused (a: bf16[4,128]) -> bf16[4,128] {
  %a.2 = bf16[4,128]{1,0} parameter(0)
  ROOT %double = bf16[4,128]{1,0} add(%a.2, %a.2), backend_config={"estimated_cycles":"7"}
}

%body (p: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %p.1 = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %start = (bf16[4,128]{1,0}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%x), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, metadata={op_name="jit(f)/layer/gather"}
  %done = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather-done(%start)
  %wrap = ((bf16[8,128]{1,0}), bf16[2,128]{1,0}, s32[]) async-start(%done), calls=%wrapped
  %wrapped.done = bf16[2,128]{1,0} async-done(%wrap)
  %kernel.3.clone = bf16[4,128]{1,0} custom-call(%x, /*index=1*/%done), \
custom_call_target="tpu_custom_call", backend_config={"estimated_cycles":"9"}
  %sum = bf16[4,128]{1,0} fusion(%kernel.3.clone), kind=kLoop, calls=%fused, \
backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], bf16[4,128]{1,0}) tuple(%i, %sum)
}

ENTRY %main (a: bf16[4,128]) -> bf16[4,128] {
  %a.1 = bf16[4,128]{1,0} parameter(0)
  %zero = s32[] constant(1)
  %first = s32[] copy(%zero), backend_config={"estimated_cycles":"5"}
  %init = (s32[], bf16[4,128]{1,0}) tuple(%first, %a.1)
  %while = (s32[], bf16[4,128]{1,0}) while(%init), condition=%condition, body=%body
  %rows = bf16[64,128]{1,0} broadcast(%x.0), \
backend_config={"estimated_cycles":"4611686018427387904"}
  %kernel.4 = bf16[4,128]{1,0} custom-call(%a.1), custom_call_target="tpu_custom_call"
  %other = bf16[4,128]{1,0} custom-call(%a.1), custom_call_target="Sharding"
  %ragged = bf16[16,128]{1,0} ragged-all-to-all(%rows, %a.1), replica_groups={}
  %both = (f32[8]{0}, f32[2,4]{1,0}) all-reduce(%q, %r), replica_groups={{0,1,2,3,4,5,6,7}}
  %pair = (u8[6]{0}, u8[6]{0}, u32[], u32[]) collective-permute-start(%s), \
source_target_pairs={{0,1},{1,0}}
  ROOT %result = bf16[4,128]{1,0} get-tuple-element(%while), index=1
}
"""


def test_collectives_of_all_forms() -> None:
    half, quarter = 4 * 128 * 2, 2 * 128 * 2
    assert hlo.collectives(_HLO) == [
        Collective("all-gather", "bf16", "[8,128]", half, 2, 1, 3, "jit(f)/layer/gather"),
        Collective("reduce-scatter", "bf16", "[2,128]", 3 * quarter, 4, 1, 3, ""),
        Collective("ragged-all-to-all", "bf16", "[16,128]", 16 * 128 * 2 * 7 // 8, 8, 0, 1, ""),
        Collective("all-reduce", "f32", "[8]+[2,4]", 64 * 2 * 7 // 8, 8, 0, 1, ""),
        Collective("collective-permute", "u8", "[6]", 6, 2, 0, 1, ""),
    ]


def test_loops_of_unknown_trips_make_one() -> None:
    text = _HLO.replace("direction=LT", "direction=NE")
    assert [row.runs for row in hlo.collectives(text)] == [1, 1, 1, 1, 1]
    assert hlo.kernels(text) == {"kernel": Kernel(2, 2)}
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert [row.runs for row in hlo.collectives(known)][:2] == [5, 5]


def test_kernels_and_estimates() -> None:
    assert hlo.kernels(_HLO) == {"kernel": Kernel(2, 4)}
    found = hlo.estimate(_HLO)
    assert found.cycles == 5 + 3 * 100
    assert (found.estimated, found.kernels) == (2, 4)
    assert found.collectives == 3 + 3 + 3


def _layers(axes: tuple[str, ...], x: jax.Array, w: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        with jax.named_scope("weights"):
            w = jax.lax.all_gather(w, axes, axis=0, tiled=True)
        return jnp.tanh(x @ w), None

    out = jax.lax.scan(layer, x, w)[0]
    return out + jax.lax.psum(jnp.sum(out), axes)


def test_a_program_for_fake_devices() -> None:
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "fsdp"))

    def abstract(shape: tuple[int, ...], spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    x, w = abstract((8, 64), P("data")), abstract((5, 64, 64), P(None, "fsdp"))
    body = functools.partial(_layers, ("fsdp",))
    program = jax.shard_map(
        body, mesh=mesh, in_specs=(x.sharding.spec, w.sharding.spec), out_specs=P("data"),
        check_vma=False,
    )  # fmt: skip
    found = jax.jit(program, donate_argnums=0).lower(x, w).compile()
    rows = {row.kind: row for row in hlo.collectives(found.as_text() or "")}
    gather, total = rows["all-gather"], rows["all-reduce"]
    assert (gather.bytes, gather.group) == (64 * 64 * 4 * 3 // 4, 4)
    assert (gather.loops, gather.runs) == (1, 5)
    assert "weights" in gather.scope
    assert (total.bytes, total.group, total.loops, total.runs) == (6, 4, 0, 1)
    memory = device_memory.hbm(found, {"inputs": x, "parameters": [w]})
    assert memory.by_kind["inputs"] == 4 * 64 * 4
    assert memory.by_kind["parameters"] == 5 * 16 * 64 * 4
    assert memory.by_kind["padding"] == 0
    assert memory.aliased == memory.outputs == 4 * 64 * 4
    assert sum(memory.by_kind.values()) == memory.peak
    assert hlo.kernels(found.as_text() or "") == {}


_TPU_PROGRAM = """
import json, sys
from interaction.compiled import device_memory, hlo, topology
topology.use_libtpu()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pallas_kernels.gather_gemv import gather_gemv

description = topology.topology(sys.argv[1])
mesh = Mesh(np.array(description.devices), ("expert",))

def abstract(dtype, shape, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

n, d, f, layers = len(mesh.devices), 256, 256, 3
weights = [abstract(jnp.bfloat16, (layers, 4 * n, *s), P(None, "expert"))
           for s in ((d, f), (d, f), (f, d))]
x = abstract(jnp.bfloat16, (n * 2, d), P("expert"))

def step(x, *weights):
    def layer(x, weights):
        tokens = jax.lax.all_gather(x, "expert", axis=0, tiled=True)
        chosen = jnp.zeros((len(tokens), 2), jnp.int32) + jnp.arange(2)
        parts = gather_gemv(tokens, chosen, jnp.ones(chosen.shape), *weights)
        return x + jax.lax.psum_scatter(parts, "expert", tiled=True), None
    return jax.lax.scan(layer, x, weights)[0]

specs = tuple(a.sharding.spec for a in (x, *weights))
mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
found = jax.jit(mapped, donate_argnums=0).lower(x, *weights).compile()
text = found.as_text()
print(json.dumps({
    "devices": n, "kind": mesh.devices[0].device_kind, "backend": jax.default_backend(),
    "collectives": hlo.collectives(text), "kernels": hlo.kernels(text),
    "estimate": hlo.estimate(text),
    "memory": device_memory.hbm(found, {"parameters": weights, "inputs": x}).by_kind,
}))
"""


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "kind", "devices"), [("v5p-8", "TPU v5", 4), ("v4-8", "TPU v4", 4)]
)
def test_a_program_for_tpus_that_are_not_here(name: str, kind: str, devices: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", _TPU_PROGRAM, name],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["devices"], found["kind"], found["backend"]) == (devices, kind, "cpu")
    assert found["kernels"] == {"gather_gemv": [1, 3]}
    rows = [Collective(*row) for row in found["collectives"]]
    (gather,) = [row for row in rows if row.kind == "all-gather"]
    assert (gather.loops, gather.runs, gather.group) == (1, 3, devices)
    assert gather.bytes == (devices - 1) * 2 * 256 * 2
    assert any(row.kind in ("reduce-scatter", "all-reduce") and row.runs == 3 for row in rows)
    assert found["memory"]["parameters"] == 3 * 3 * 4 * 256 * 256 * 2
    assert found["estimate"][0] > 0


@needs_libtpu
def test_a_shape_that_libtpu_does_not_know_is_refused() -> None:
    script = (
        "from interaction.compiled import topology\n"
        "try:\n    topology.topology('v5p:3x1x1')\n"
        "except ValueError as error:\n    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert "refused: topology: got 'v5p:3x1x1'" in done.stdout, done.stderr[-2000:]
