"""`gather_gemv` against NumPy in float64; batch invariance and refused arguments."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gather_gemv import Scales, gather_gemv
from pallas_kernels.gather_gemv.active import active_experts
from pallas_kernels.gather_gemv.kernel_tpu import MAX_TOKENS, ffn_block, gather_gemv_tpu
from pallas_kernels.tpu import TpuTarget
from tests.support import cast, mark_optimised

Array, Rng = jax.Array, np.random.Generator

BOUND = {"float32": 1e-6, "bfloat16": 8e-3}
# dtype, tokens, and e, k, d, f; each case is compiled once.
CASES = [
    (dtype, t, sizes)
    for i, t in enumerate([0, 1, 3, 17])
    for j, sizes in enumerate([(1, 1, 16, 8), (5, 2, 33, 17), (8, 3, 32, 256)])
    for dtype in [("float32", "bfloat16")[(i + j) % 2]]
]
HERE = ("xla", "tpu", "reference")  # the GPU's kernel is tested in test_gather_gemv_gpu.py


@functools.partial(jax.jit, static_argnames="implementation")
def call(*arguments: Array, implementation: str, scales: Scales | None = None) -> Array:
    interpret = implementation == "tpu"
    return gather_gemv(
        *arguments, scales=scales, implementation=implementation, interpret=interpret
    )


@functools.partial(jax.jit, static_argnames="implementation")
def value_and_gradients(
    x: Array,
    experts: Array,
    weights: Array,
    gate: Array,
    up: Array,
    down: Array,
    cotangent: Array,
    implementation: str,
) -> tuple[Array, tuple[Array, ...]]:
    def run(x: Array, weights: Array, gate: Array, up: Array, down: Array) -> Array:
        interpret = implementation == "tpu"
        return gather_gemv(
            x, experts, weights, gate, up, down, implementation=implementation, interpret=interpret
        )

    out, pull = jax.vjp(run, x, weights, gate, up, down)
    return out, pull(cotangent)


def truth(
    x: Array, experts: Array, weights: Array, gate: Array, up: Array, down: Array, cotangent: Array
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Value and gradients in float64, one token and one choice at a time.

    The third result is the scale for the error of the router weights' gradient. That gradient is an
    inner product over d, which may cancel; its scale is the sum of the terms' magnitudes.
    """
    x, weights, gate, up, down, cotangent = (
        np.asarray(a, np.float64) for a in (x, weights, gate, up, down, cotangent)
    )
    terms, out, slopes = (
        0.0,
        np.zeros_like(x),
        [np.zeros_like(a) for a in (x, weights, gate, up, down)],
    )
    for t, j in np.ndindex(*experts.shape):
        e = int(experts[t, j])
        if not 0 <= e < len(gate):
            continue
        a, b = x[t] @ gate[e], x[t] @ up[e]
        s = 1 / (1 + np.exp(-a))
        hidden = a * s * b
        part = hidden @ down[e]
        out[t] += weights[t, j] * part
        terms = max(terms, np.sum(np.abs(part * cotangent[t])))
        back = down[e] @ cotangent[t]
        slopes[1][t, j] = hidden @ back
        back = back * weights[t, j]
        d_a, d_b = back * b * s * (1 + a * (1 - s)), back * a * s
        slopes[0][t] += gate[e] @ d_a + up[e] @ d_b
        slopes[2][e] += np.outer(x[t], d_a)
        slopes[3][e] += np.outer(x[t], d_b)
        slopes[4][e] += weights[t, j] * np.outer(hidden, cotangent[t])
    return out, slopes, terms


def layer(rng: Rng, e: int, d: int, f: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    gate, up = (cast(rng.normal(size=(e, d, f)) / np.sqrt(d), dtype) for _ in range(2))
    return gate, up, cast(rng.normal(size=(e, f, d)) / np.sqrt(f), dtype)


def tokens(
    rng: Rng, t: int, d: int, e: int, k: int, dtype: str = "float32", load: str = "any"
) -> tuple[np.ndarray, ...]:
    if load == "stray":
        experts = rng.choice([-7, -1, 0, e - 1, e, 1 << 30], size=(t, k))
    elif load == "one":
        experts = np.full((t, k), rng.integers(e))
    else:
        experts = np.argsort(rng.random((t, e)), axis=1)[:, :k]
    x = cast(rng.normal(size=(t, d)), dtype)
    return x, experts.astype(np.int32), rng.random((t, k)).astype(np.float32)


def error(got: Array, wanted: np.ndarray, size: float = 0.0) -> float:
    got, size = np.asarray(got, np.float64), size or np.max(np.abs(wanted), initial=0)
    assert got.shape == wanted.shape and np.all(np.isfinite(got))
    return np.max(np.abs(got - wanted), initial=0) / max(size, 1e-30)


@pytest.mark.parametrize("implementation", HERE)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(CASES),
    load=st.sampled_from(["any", "one", "stray"]),
    seed=st.integers(0, 1 << 30),
)
def test_equals_float64(
    implementation: str, case: tuple[str, int, tuple[int, ...]], load: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dtype, t, (e, k, d, f) = case
    arguments = (*tokens(rng, t, d, e, k, dtype, load), *layer(rng, e, d, f, dtype))
    cotangent = cast(rng.normal(size=(t, d)), dtype)
    out, slopes = value_and_gradients(*arguments, cotangent, implementation=implementation)
    wanted, wanted_slopes, terms = truth(*arguments, cotangent)
    assert out.dtype == dtype and error(out, wanted) <= BOUND[dtype]
    sizes = (0.0, terms, 0.0, 0.0, 0.0)
    for slope, goal, size in zip(slopes, wanted_slopes, sizes, strict=True):
        assert error(slope, goal, size) <= BOUND[dtype]


@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_eight_bit_weights(implementation: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    e, d, f = 4, 64, 128
    x, experts, weights = tokens(rng, 9, d, e, 2, "bfloat16")
    exact = layer(rng, e, d, f)
    top = 127 if dtype == "int8" else 448
    scales = Scales(*(np.max(np.abs(w), axis=1) / np.float32(top) for w in exact))
    stored = [w / s[:, None] for w, s in zip(exact, scales, strict=True)]
    stored = [cast(np.round(w) if dtype == "int8" else w, dtype) for w in stored]
    out = call(x, experts, weights, *stored, scales=scales, implementation=implementation)
    pairs = zip(stored, scales, strict=True)
    widened = [np.asarray(w, np.float64) * np.asarray(s)[:, None] for w, s in pairs]
    wanted, *_ = truth(x, experts, weights, *widened, np.zeros(x.shape))
    assert error(out, wanted) <= BOUND["bfloat16"]

    @jax.jit
    @jax.grad
    def slope(scales: Scales) -> Array:
        given = x, experts, weights, *stored
        return jnp.sum(call(*given, scales=scales, implementation=implementation) ** 2)

    assert all(np.any(s) for s in jax.device_get(slope(scales)))


@pytest.mark.parametrize("implementation", mark_optimised(HERE))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_token_s_bits_do_not_depend_on_others(implementation: str, dtype: str, k: int) -> None:
    rng = np.random.default_rng(1)
    weights = layer(rng, 8, 48, 256, dtype)
    whole = tokens(rng, 19, 48, 8, k, dtype)
    out = np.asarray(call(*whole, *weights, implementation=implementation), np.float32)
    for rows in ([0], [18, 3], [5, 5, 5], list(range(7)), list(rng.permutation(19)), [2] * 40):
        some = [a[np.array(rows)] for a in whole]
        again = np.asarray(call(*some, *weights, implementation=implementation), np.float32)
        np.testing.assert_array_equal(again, out[rows])


@pytest.mark.parametrize("implementation", HERE)
def test_experts_do_not_affect_tokens_that_did_not_choose_them(implementation: str) -> None:
    """NaN weights reach only the tokens that chose them."""
    rng = np.random.default_rng(2)
    x, experts, weights = tokens(rng, 6, 16, 3, 1)
    experts = np.array([[0], [1], [7], [-1], [1], [0]], np.int32)
    gate, up, down = layer(rng, 3, 16, 8)
    sound = call(x, experts, weights, gate, up, down, implementation=implementation)
    poisoned = [gate.copy(), up, down.copy()]
    poisoned[0][1], poisoned[2][1] = np.nan, np.nan
    out = call(x, experts, weights, *poisoned, implementation=implementation)
    others = np.array([0, 2, 3, 5])
    np.testing.assert_array_equal(np.asarray(out)[others], np.asarray(sound)[others])
    assert np.all(np.isnan(np.asarray(out)[[1, 4]]))
    no_expert = np.full_like(experts, 3)
    poisoned = [np.full_like(w, np.nan) for w in (gate, up, down)]
    out = call(x, no_expert, weights, *poisoned, implementation=implementation)
    np.testing.assert_array_equal(np.asarray(out), 0)


@pytest.mark.parametrize("implementation", HERE)
def test_vmap_over_sessions(implementation: str) -> None:
    rng = np.random.default_rng(3)
    weights = layer(rng, 5, 16, 8)
    batch = [tokens(rng, 3, 16, 5, 2) for _ in range(4)]
    stacked = [np.stack(parts) for parts in zip(*batch, strict=True)]
    run = functools.partial(call, implementation=implementation)
    out = jax.vmap(run, in_axes=(0, 0, 0, None, None, None))(*stacked, *weights)
    alone = [run(*session, *weights) for session in batch]
    np.testing.assert_array_equal(np.asarray(out), np.stack(alone))
    layers = [np.stack([w, 2 * w]) for w in weights]
    own = jax.vmap(run, in_axes=(None, None, None, 0, 0, 0))(*batch[0], *layers)
    alone = [run(*batch[0], *(n * w for w in weights)) for n in (1, 2)]
    np.testing.assert_array_equal(np.asarray(own), np.stack(alone))


@pytest.mark.parametrize("implementation", ["xla", "tpu"])
def test_inside_shard_map(implementation: str) -> None:
    rng = np.random.default_rng(4)
    weights, some = layer(rng, 5, 16, 8), tokens(rng, 16, 16, 5, 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    run = functools.partial(call, implementation=implementation)
    split = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(spec("data"),) * 3 + (spec(),) * 3,
        out_specs=spec("data"),
        check_vma=False,
    )
    whole = run(*some, *weights)
    np.testing.assert_array_equal(np.asarray(jax.jit(split)(*some, *weights)), np.asarray(whole))


def test_the_kernel_has_no_races() -> None:
    """Interpreted with memory full of NaN; accesses out of bounds and races raise."""
    rng = np.random.default_rng(5)
    arguments = (*tokens(rng, 5, 128, 4, 2), *layer(rng, 4, 128, 256))
    params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    out = jax.jit(functools.partial(gather_gemv_tpu, interpret=params))(*arguments, None)
    wanted, *_ = truth(*arguments, np.zeros(arguments[0].shape))
    assert error(out, wanted) <= BOUND["float32"]


def test_many_tokens_take_several_launches() -> None:
    rng = np.random.default_rng(6)
    arguments = (*tokens(rng, 2 * MAX_TOKENS + 3, 16, 4, 2), *layer(rng, 4, 16, 8))
    wanted, *_ = truth(*arguments, np.zeros(arguments[0].shape))
    for implementation in HERE:
        assert error(call(*arguments, implementation=implementation), wanted) <= BOUND["float32"]


@given(st.lists(st.integers(-2, 9), max_size=12), st.integers(1, 8))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_active_experts(ids: list[int], num_experts: int) -> None:
    ids = np.asarray(ids, np.int32).reshape(-1, 1)
    found, count = jax.device_get(jax.jit(active_experts, static_argnums=1)(ids, num_experts))
    wanted = sorted({int(i) for i in ids[:, 0] if 0 <= i < num_experts})
    assert found.shape == (min(num_experts, ids.size),)
    assert found[:count].tolist() == wanted
    assert all(int(i) == (wanted or [0])[-1] for i in found[count:])


def test_blocks_fit_the_chip() -> None:
    bfloat16 = jnp.dtype("bfloat16")
    v4, v5p = TpuTarget("v4", 4, 16 << 20, 1), TpuTarget("v5p", 5, 64 << 20, 2)

    def shaped(d: int, f: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((8, d, f), bfloat16)

    assert ffn_block(bfloat16, shaped(4096, 2048), v5p) == 512
    assert ffn_block(bfloat16, shaped(4096, 2048), v4) == 128
    assert ffn_block(bfloat16, shaped(192, 48), v5p) == 48
    assert ffn_block(bfloat16, shaped(8192, 2048), v4) is None


def good() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    x, experts, weights = tokens(rng, 4, 16, 3, 2)
    gate, up, down = layer(rng, 3, 16, 8)
    return {
        "x": x,
        "experts": experts,
        "weights": weights,
        "gate": gate,
        "up": up,
        "down": down,
        "scales": None,
    }


def zeros(shape: tuple[int, ...], dtype: str | type = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": zeros((2, 4, 16))}, r"x is float32\[2, 4, 16\], wanted .*\[t, d\]"),
        ({"x": zeros((4, 16), "float16")}, "x is float16"),
        ({"experts": zeros((4, 2))}, r"experts is float32\[4, 2\], wanted int32\[4, k\]"),
        ({"experts": zeros((3, 2), "int32")}, r"experts is int32\[3, 2\]"),
        ({"weights": zeros((4, 3))}, r"weights is float32\[4, 3\], wanted float32\[4, 2\]"),
        ({"gate": zeros((3, 15, 8))}, r"gate has shape \[3, 15, 8\], wanted \[e, d=16, f\]"),
        ({"gate": zeros((3, 16, 8), jnp.int4)}, "gate is int4"),
        ({"up": zeros((3, 16, 9))}, r"up is float32\[3, 16, 9\]"),
        ({"down": zeros((3, 16, 8))}, r"down is float32\[3, 16, 8\], wanted .*\[3, 8, 16\]"),
        (
            {n: zeros(s, "int8") for n, s in (("gate", (3, 16, 8)), ("up", (3, 16, 8)))}
            | {"down": zeros((3, 8, 16), "int8")},
            "scales=None with int8 weights",
        ),
        ({"scales": Scales(*(zeros((3, n)) for n in (8, 8, 16)))}, "scales=given with float32"),
        ({"implementation": "cuda"}, "wanted one of tpu, gpu, xla, reference"),
        ({"implementation": "tpu"}, "it runs on tpu, this is cpu .* possible: xla, reference"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_gemv(**(good() | change))


def test_bad_scales_are_refused() -> None:
    eight = {n: good()[n].astype("int8") for n in ("gate", "up", "down")}
    scales = Scales(zeros((3, 8)), zeros((3, 8)), zeros((3, 8)))
    with pytest.raises(
        ValueError, match=r"scales.down is float32\[3, 8\], wanted float32\[3, 16\]"
    ):
        gather_gemv(**(good() | eight | {"scales": scales}))


def test_an_expert_that_no_block_fits_is_refused() -> None:
    big = jax.ShapeDtypeStruct((2, 1 << 15, 1 << 15), jnp.bfloat16)
    few = jax.ShapeDtypeStruct((4, 1 << 15), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((4, 2), "int32")
    share = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    run = functools.partial(gather_gemv, implementation="tpu", interpret=True)
    with pytest.raises(ValueError, match="no block that fits the 16 MiB of VMEM"):
        jax.eval_shape(run, few, ids, share, big, big, big)
