"""`grouped_matmul` against NumPy in float64; batch invariance, block sizes, refused arguments."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike

from pallas_kernels import implementation as choice, shapes
from pallas_kernels.grouped_matmul import grouped_matmul, kernel_tpu, visits
from tests.pallas_kernels.triton_modules import verified_kernels
from tests.support import cast, mark_optimised

IMPLEMENTATIONS = ("tpu", "gpu", "xla", "reference")
DTYPES = (jnp.float32, jnp.bfloat16)
LIMIT = {jnp.float32: 1e-6, jnp.bfloat16: 8e-3}  # measured: 6e-7 and 3.2e-3
EXAMPLES = 63  # for each dtype and implementation

# Rows, k, n and groups. The shapes are few, so that each is compiled once.
ODD = ((0, 16, 16, 3), (1, 5, 33, 4), (40, 130, 24, 1), (77, 48, 80, 5), (300, 192, 48, 8))
EVEN = ((0, 16, 16, 3), (1, 32, 16, 4), (40, 144, 32, 1), (77, 48, 80, 5), (300, 192, 48, 8))
VMEM_AND_SIDE = {  # name of the chip -> VMEM of a core in MiB, side of its matrix unit
    "v4": (16, 128),
    "v5e": (128, 128),
    "v5p": (64, 128),
    "v6e": (128, 256),
    "tpu7x": (64, 256),
}


@functools.cache
def value_and_gradients(implementation: str) -> Callable[..., tuple[jax.Array, ...]]:
    def run(
        lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, grad: jax.Array
    ) -> tuple[jax.Array, ...]:
        call = functools.partial(grouped_matmul, implementation=implementation, interpret=True)
        out, pull = jax.vjp(lambda lhs, rhs: call(lhs, rhs, sizes), lhs, rhs)
        return out, *pull(grad)

    return jax.jit(run)


def truth(
    lhs: jax.Array, rhs: jax.Array, sizes: ArrayLike, grad: jax.Array
) -> tuple[np.ndarray, ...]:
    """Values and gradients in float64."""
    rows, weights, pulled = (np.asarray(x, np.float64) for x in (lhs, rhs, grad))
    out, to_lhs, to_rhs = np.zeros(grad.shape), np.zeros(lhs.shape), np.zeros(rhs.shape)
    start = 0
    for group, size in enumerate(np.asarray(sizes, np.int64)):
        own = slice(start, min(start + max(size, 0), len(lhs)))
        out[own] = rows[own] @ weights[group]
        to_lhs[own] = pulled[own] @ weights[group].T
        to_rhs[group] = rows[own].T @ pulled[own]
        start = own.stop
    return out, to_lhs, to_rhs


def operands(
    rows: int, k: int, n: int, groups: int, dtype: DTypeLike, seed: int = 0
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        cast(rng.standard_normal(shape), dtype) for shape in ((rows, k), (groups, k, n), (rows, n))
    )


def check(
    implementation: str,
    dtype: DTypeLike,
    lhs: jax.Array,
    rhs: jax.Array,
    sizes: ArrayLike,
    grad: jax.Array,
) -> None:
    got = value_and_gradients(implementation)(lhs, rhs, np.asarray(sizes, np.int32), grad)
    names = ("out", "to_lhs", "to_rhs")
    for name, have, want in zip(names, got, truth(lhs, rhs, sizes, grad), strict=True):
        assert have.dtype == dtype
        have = np.asarray(have, np.float64)
        error = np.max(np.abs(have - want), initial=0)
        assert error <= LIMIT[dtype] * np.max(np.abs(want), initial=0), name
        assert not have[want == 0].any(), name  # exactly zero without a group or rows


@st.composite
def sizes_of(draw: Callable[..., Any], rows: int, groups: int) -> np.ndarray:
    kind = draw(st.sampled_from(("cut", "one", "none")))
    if kind == "cut":
        cut = st.lists(st.integers(0, rows), min_size=groups, max_size=groups)
        return np.diff(sorted(draw(cut)), prepend=0)
    taken = np.zeros(groups, int)
    if kind == "one":
        taken[draw(st.integers(0, groups - 1))] = rows
    return taken


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_values_and_gradients(implementation: str, dtype: DTypeLike, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(EVEN if implementation == "gpu" else ODD))
    sizes = data.draw(sizes_of(shape[0], shape[-1]))
    lhs, rhs, grad = operands(*shape, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    past = np.arange(shape[0])[:, None] >= sizes.sum()
    check(implementation, dtype, *(
        np.where(past, lhs.dtype.type(np.nan), lhs), rhs, sizes,
        np.where(past, grad.dtype.type(np.nan), grad),
    ))  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "sizes", [(50, 60, 40), (-5, 20, 30), (20, -(2**31), 2**31 - 1), (2**31 - 1,) * 3, (0, -1, 7)]
)
def test_invalid_sizes_are_clipped_at_run_time(implementation: str, sizes: ArrayLike) -> None:
    lhs, rhs, grad = operands(100, 48, 32, 3, jnp.float32)
    check(implementation, jnp.float32, lhs, rhs, sizes, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize("implementation", mark_optimised(IMPLEMENTATIONS))
def test_a_rows_bits_do_not_depend_on_other_rows(implementation: str, dtype: DTypeLike) -> None:
    groups, k, n = 2, 192, 48
    _, rhs, _ = operands(1, k, n, groups, dtype)
    row, _, row_grad = operands(1, k, n, groups, dtype, seed=1)
    rng = np.random.default_rng(2)
    bits = set()
    # With 1100 rows the TPU's and the GPU's row tiles are longer.
    for rows in (1, 17, 65, 65, 1100):
        sizes = rng.multinomial(rows - 1, [0.4, 0.4, 0.2])[:groups]
        sizes[1] += 1
        place = sizes[0] + rng.integers(sizes[1])
        lhs, _, grad = operands(rows, k, n, groups, dtype, seed=rows)
        lhs[place], grad[place] = row[0], row_grad[0]
        run = value_and_gradients(implementation)
        found = run(lhs, rhs, np.asarray(sizes, np.int32), grad)[:2]
        bits.add(b"".join(np.asarray(leaf)[place].tobytes() for leaf in found))
    assert len(bits) == 1


def batch() -> tuple[np.ndarray, ...]:
    lhs, rhs, grad = operands(8 * 40, 32, 16, 4, jnp.float32)
    sizes = np.random.default_rng(3).multinomial(30, [0.25] * 4, size=8).astype(np.int32)
    return lhs.reshape(8, 40, 32), rhs, sizes, grad.reshape(8, 40, 16)


def one_by_one(
    implementation: str, lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, grad: jax.Array
) -> tuple[Any, ...]:
    run = value_and_gradients(implementation)
    out, to_lhs, to_rhs = zip(
        *(run(x, rhs, size, g) for x, size, g in zip(lhs, sizes, grad, strict=True)), strict=True
    )
    return np.stack(out), np.stack(to_lhs), sum(map(np.asarray, to_rhs))


def with_gradients(
    call: Callable[..., jax.Array],
    lhs: jax.Array,
    rhs: jax.Array,
    sizes: jax.Array,
    grad: jax.Array,
) -> tuple[jax.Array, ...]:
    out, pull = jax.vjp(lambda lhs, rhs: call(lhs, rhs, sizes), lhs, rhs)
    return out, *pull(grad)


def assert_same(got: Sequence[Any], want: Sequence[Any]) -> None:
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5, atol=1e-5)  # summed in another order


@pytest.mark.parametrize("implementation", ("tpu", "gpu", "xla"))
def test_vmap_over_sessions(implementation: str) -> None:
    call = functools.partial(grouped_matmul, implementation=implementation, interpret=True)
    mapped = jax.vmap(call, (0, None, 0))
    got = jax.jit(functools.partial(with_gradients, mapped))(*batch())
    assert_same(got, one_by_one(implementation, *batch()))


# JAX's interpret mode of kernels does not support values that vary over a mesh axis.
@pytest.mark.parametrize(
    ("implementation", "check_vma"),
    [("tpu", False), ("gpu", False), ("xla", False), ("xla", True), ("reference", True)],
)
def test_shard_map_over_devices(implementation: str, check_vma: bool) -> None:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))

    def local(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array) -> jax.Array:
        return grouped_matmul(lhs[0], rhs, sizes[0], implementation=implementation, interpret=True)[
            None
        ]

    call = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("data"), P(), P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    with jax.set_mesh(mesh):
        specs = (P("data"), P(), P("data"), P("data"))
        args = [
            jax.device_put(x, jax.NamedSharding(mesh, s))
            for x, s in zip(batch(), specs, strict=True)
        ]
        got = jax.jit(functools.partial(with_gradients, call))(*args)
    assert_same(jax.device_get(got), one_by_one(implementation, *batch()))


def test_a_split_contraction() -> None:
    # A block of the whole contraction does not fit 16 MiB.
    lhs, rhs, grad = operands(20, 20480, 128, 2, jnp.float32)
    block = kernel_tpu.matmul_block(20480, 128, 4, kernel_tpu.block_limits(interpret=True))
    assert block.k < 20480
    sizes = (7, 9)
    got = value_and_gradients("tpu")(lhs, rhs, np.asarray(sizes, np.int32), grad)
    for have, want in zip(got, truth(lhs, rhs, np.asarray(sizes), grad), strict=True):
        # float32 over 20480 terms: measured 2e-6
        assert np.max(np.abs(have - want)) <= 1e-5 * np.max(np.abs(want))


def test_no_races_and_no_reads_of_uninitialised_memory(capfd: pytest.CaptureFixture[str]) -> None:
    lhs, rhs, grad = operands(300, 64, 256, 3, jnp.float32)
    sizes = (130, 0, 100)
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    starts, ends = np.array([[0, 130, 130], [130, 130, 230]], np.int32)
    out, to_lhs, to_rhs = truth(lhs, rhs, np.asarray(sizes), grad)
    matmul = functools.partial(kernel_tpu.matmul, starts=starts, ends=ends, interpret=interpret)
    got = (
        (matmul(lhs, rhs, transpose_rhs=False), out),
        (matmul(grad, rhs, transpose_rhs=True), to_lhs),
        (kernel_tpu.outer(lhs, grad, starts, ends, interpret=interpret), to_rhs),
    )
    for have, want in got:
        np.testing.assert_allclose(have, want, atol=1e-6 * np.abs(want).max())
    assert "race" not in "".join(capfd.readouterr()).lower()


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
def test_lowers_for_cuda(dtype: DTypeLike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    run = functools.partial(with_gradients, grouped_matmul)
    lhs, rhs, grad = (
        abstract(*shape, dtype=dtype) for shape in ((4096, 1024), (32, 1024, 512), (4096, 512))
    )
    sizes = abstract(32, dtype=jnp.int32)
    traced = jax.jit(run).trace(lhs, rhs, sizes, grad)
    names = verified_kernels(traced.lower(lowering_platforms=("cuda",)))
    assert sorted(names) == ["grouped_matmul", "grouped_matmul_transposed", "grouped_outer"]


@pytest.mark.parametrize("chip", VMEM_AND_SIDE)
@pytest.mark.parametrize("preset", shapes.PRESETS)
def test_blocks_fit_every_chip(chip: str, preset: str) -> None:
    mib, side = VMEM_AND_SIDE[chip]
    limits = kernel_tpu.BlockLimits(mib * 2**20 * 15 // 16, 2**31 if side == 256 else 2**30)
    layer = shapes.PRESETS[preset]
    for k, n in ((layer.dim, layer.ffn), (layer.ffn, layer.dim)):
        for itemsize in (2, 4):
            block = kernel_tpu.matmul_block(k, n, itemsize, limits)
            outer = kernel_tpu.outer_block(k, n, itemsize, limits)
            assert k % block.k == 0
            for found in (block, outer):
                size = found.rows * (found.k + found.n) * itemsize + found.k * found.n * itemsize
                assert size <= limits.vmem
            if itemsize == 2:
                assert block.k == k  # a contraction is not split at the presets' shapes


@pytest.mark.parametrize("tile", (16, 128))
@pytest.mark.parametrize("visit_empty", (False, True))
def test_visits_cover_each_row_of_each_group_once(tile: int, visit_empty: bool) -> None:
    rows = 300
    rng = np.random.default_rng(5)
    for _ in range(8):
        sizes = np.diff(np.sort(rng.integers(0, rows + 1, size=6)) // 7 * 7, prepend=0)
        starts, ends = visits.group_bounds(np.asarray(sizes, np.int32), rows)
        group, where, count = visits.tile_visits(starts, ends, rows, tile, visit_empty)
        pairs = list(zip(group[:count].tolist(), where[:count].tolist(), strict=True))
        want = {(g, row // tile) for g in range(6) for row in range(int(starts[g]), int(ends[g]))}
        empty = [pair for pair in pairs if sizes[pair[0]] == 0]
        assert [pair[0] for pair in empty] == (np.flatnonzero(sizes == 0).tolist() * visit_empty)
        assert sorted(want) == sorted(set(pairs) - set(empty))
        assert len(pairs) == len(set(pairs))
        assert [pair[0] for pair in pairs] == sorted(pair[0] for pair in pairs)
        assert ((where >= 0) & (where * tile < rows)).all()


def abstract(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((abstract(2, 3, 4), abstract(2, 4, 5)), {}, r"lhs has shape \(2, 3, 4\)"),
        ((abstract(3, 4), abstract(2, 5, 5)), {}, r"rhs has shape \(2, 5, 5\).*k 4"),
        ((abstract(3, 4), abstract(4, 5)), {}, r"rhs has shape \(4, 5\)"),
        ((abstract(3, 4), abstract(2, 4, 5, dtype=jnp.bfloat16)), {}, "rhs bfloat16.*cast"),
        ((abstract(3, 4, dtype=jnp.int8), abstract(2, 4, 5, dtype=jnp.int8)), {}, "lhs is int8"),
        ((abstract(3, 4), abstract(2, 4, 5)), {"implementation": "cuda"}, "wanted one of tpu"),
        ((abstract(3, 4), abstract(2, 4, 5)), {"implementation": "tpu"}, "platform is cpu"),
        ((abstract(3, 4), abstract(2, 4, 5)), {"implementation": "gpu"}, "platform is cpu"),
        (
            (abstract(3, 20), abstract(2, 20, 16)),
            {"implementation": "gpu", "interpret": True},
            "k=20, n=16: wanted multiples of 16",
        ),
        (
            (abstract(3, 100_001), abstract(2, 100_001, 16)),
            {"implementation": "tpu", "interpret": True},
            "k=100001, n=16: the smallest block takes .* bytes of VMEM",
        ),
    ],
)
def test_refusals(
    args: tuple[jax.ShapeDtypeStruct, ...], options: dict[str, Any], message: str
) -> None:
    sizes = abstract(2, dtype=jnp.int32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(grouped_matmul, **options), *args, sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (np.array([1, -1], np.int32), "least -1"),
        (np.array([2, 2], np.int32), "sum 4, wanted none negative and at most the 3 rows"),
        (np.array([2**31 - 1] * 2, np.int32), "sum 4294967294"),
        (np.array([1, 1, 1], np.int32), r"int32\[3\], wanted int32\[2\]"),
        (np.array([1.0, 1.0], np.float32), r"group_sizes is float32"),
    ],
)
def test_invalid_concrete_sizes_are_refused(sizes: jax.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.zeros((3, 4)), jnp.zeros((2, 4, 5)), sizes)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 4)])
def test_sizes_of_zero(sizes: ArrayLike) -> None:
    for rows, k, n in ((4, 0, 3), (4, 3, 0), (0, 3, 3)):
        sizes = np.minimum(sizes, rows)
        lhs, rhs, grad = operands(rows, k, n, 2, jnp.float32)
        for implementation in ("tpu", "gpu", "xla"):
            if implementation == "gpu" and (k % 16 or n % 16):
                continue
            check(implementation, jnp.float32, lhs, rhs, sizes, grad)
