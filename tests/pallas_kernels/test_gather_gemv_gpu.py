"""The GPU kernel of `gather_gemv`, interpreted and lowered for CUDA; no GPU needed."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pallas_kernels.gather_gemv import Scales, gather_gemv
from pallas_kernels.gather_gemv.kernel_gpu import gather_gemv_gpu, refusal
from tests.pallas_kernels.triton_modules import verified_kernels
from tests.support import cast

# Measured on these shapes: 3e-7 and 5e-3, from rounding the hidden values and the results.
TOLERANCE = {"float32": 1e-6, "bfloat16": 8e-3}
# Tokens, choices, experts, d and f. They cover every row tile, two launches, and sizes that are not
# powers of two. The shapes are few, because an interpreted kernel takes seconds to compile.
SHAPES = (
    (1, 1, 3, 64, 16),
    (7, 3, 5, 48, 80),
    (24, 2, 4, 64, 48),
    (40, 2, 8, 32, 64),
    (100, 5, 4, 16, 32),
    (131, 2, 3, 32, 16),
)
KINDS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "int8"))


@jax.jit
def run(arguments: tuple[jax.Array, ...], scales: Scales | None) -> jax.Array:
    return gather_gemv(*arguments, scales=scales, implementation="gpu", interpret=True)


def case(
    shape: tuple[int, ...], kind: tuple[str, str], seed: int = 0, ids: str = "any"
) -> tuple[tuple[np.ndarray, ...], Scales | None]:
    t, k, e, d, f = shape
    dtype, stored = kind
    rng = np.random.default_rng(seed)
    low, high = {"any": (-2, e + 2), "one": (e - 1, e), "none": (e, e + 2)}[ids]
    matrices = [rng.normal(size=s) / s[1] ** 0.5 for s in ((e, d, f), (e, d, f), (e, f, d))]
    scales = None
    if stored != dtype:
        top = 127.0 if stored == "int8" else 448.0
        each = [np.abs(m).max(axis=1) / top for m in matrices]
        matrices = [m / s[:, None] for m, s in zip(matrices, each, strict=True)]
        matrices = [np.round(m) for m in matrices] if stored == "int8" else matrices
        scales = Scales(*(s.astype(np.float32) for s in each))
    arguments = (
        cast(rng.normal(size=(t, d)), dtype),
        rng.integers(low, high, size=(t, k)).astype(np.int32),
        rng.uniform(0.1, 1.0, size=(t, k)).astype(np.float32),
        *(cast(m, stored) for m in matrices),
    )
    return arguments, scales


def expected(arguments: tuple[np.ndarray, ...], scales: Scales | None) -> np.ndarray:
    """The result token by token in float64, of the kernel's own operands."""
    x, ids, weights, *matrices = (np.asarray(a).astype(np.float64) for a in arguments)
    if scales is not None:
        each = [np.asarray(s, np.float64)[:, None] for s in scales]
        matrices = [m * s for m, s in zip(matrices, each, strict=True)]
    out = np.zeros_like(x)
    for (token, choice), expert in np.ndenumerate(ids.astype(int)):
        if 0 <= expert < len(matrices[0]):
            gate, up, down = (m[expert] for m in matrices)
            gates = x[token] @ gate
            hidden = gates / (1 + np.exp(-gates)) * (x[token] @ up)
            out[token] += weights[token, choice] * (hidden @ down)
    return out


def error(got: jax.Array, wanted: np.ndarray) -> float:
    difference = np.abs(np.asarray(got, np.float64) - wanted).max()
    return difference / max(np.abs(wanted).max(), 1e-30)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=60 // len(KINDS), deadline=None, derandomize=True)
@hypothesis.given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**31),
    ids=st.sampled_from(("any", "any", "one", "none")),
)
def test_equals_the_reference(
    shape: tuple[int, ...], kind: tuple[str, str], seed: int, ids: str
) -> None:
    arguments, scales = case(shape, kind, seed, ids)
    assert error(run(arguments, scales), expected(arguments, scales)) <= TOLERANCE[kind[0]]


def test_equals_the_reference_with_float8() -> None:
    arguments, scales = case((5, 2, 4, 32, 16), ("bfloat16", "float8_e4m3fn"))
    assert error(run(arguments, scales), expected(arguments, scales)) <= TOLERANCE["bfloat16"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tokens_bits_do_not_depend_on_the_others(dtype: str) -> None:
    arguments, _ = case((131, 5, 4, 64, 48), (dtype, dtype))
    tokens, matrices = arguments[:3], arguments[3:]
    whole = np.asarray(run(arguments, None), np.float32)
    rng = np.random.default_rng(0)
    for count in (1, 2, 16, 17, 24, 60, 128):
        rows = rng.permutation(len(whole))[:count]
        some = run((*(a[rows] for a in tokens), *matrices), None)
        np.testing.assert_array_equal(np.asarray(some, np.float32), whole[rows], str(count))


def test_experts_do_not_affect_tokens_that_did_not_choose_them() -> None:
    arguments, _ = case((24, 2, 4, 64, 48), ("float32", "float32"))
    x, ids, weights, *matrices = arguments
    ids = np.random.default_rng(0).integers(0, 3, ids.shape).astype(np.int32)
    ids[5] = 3
    wanted = np.array(run((x, ids, weights, *matrices), None))
    x[5], weights[5] = np.inf, np.nan
    for matrix in matrices:
        matrix[3] = np.nan
    got = np.asarray(run((x, ids, weights, *matrices), None))
    others = np.arange(len(x)) != 5
    np.testing.assert_array_equal(got[others], wanted[others])
    assert np.isnan(got[5]).all()


@pytest.mark.parametrize("tokens", [1, 24, 128, 200])
@pytest.mark.parametrize(
    ("dtype", "stored"), [*KINDS, ("bfloat16", "float8_e4m3fn"), ("float32", "int8")]
)
def test_lowers_for_cuda(tokens: int, dtype: str, stored: str) -> None:
    e, d, f = 32, 1024, 512
    array = jax.ShapeDtypeStruct
    each = [array((e, n), jnp.float32) for n in (f, f, d)]
    lowered = (
        jax.jit(gather_gemv_gpu)
        .trace(
            array((tokens, d), dtype),
            array((tokens, 4), jnp.int32),
            array((tokens, 4), jnp.float32),
            *(array(shape, stored) for shape in ((e, d, f), (e, d, f), (e, f, d))),
            Scales(*each) if stored != dtype else None,
        )
        .lower(lowering_platforms=("cuda",))
    )
    # Two launches for every 128 tokens.
    assert len(verified_kernels(lowered)) == 2 * -(-tokens // 128)


@pytest.mark.parametrize(
    ("shape", "stored", "why"),
    [
        ((4, 40, 48), "float32", "d=40 and f=48 must be multiples of 16; pad"),
        ((4, 48, 40), "float32", "d=48 and f=40 must be multiples of 16; pad"),
        ((2**16, 16, 16), "float32", "65536 experts, a launch holds at most 65535"),
        ((300, 4096, 2048), "int8", "gate has 2516582400 8-bit values, at most 2147483648"),
        ((256, 4096, 2048), "int8", None),
        ((256, 4096, 2048), "bfloat16", None),
    ],
)
def test_refusals(shape: tuple[int, ...], stored: str, why: str | None) -> None:
    x = jax.ShapeDtypeStruct((3, shape[1]), jnp.bfloat16)
    reason = refusal(x, jax.ShapeDtypeStruct(shape, stored))
    assert (reason is None) if why is None else (why in str(reason))


def test_errors_have_the_reason() -> None:
    arguments, _ = case((3, 1, 2, 40, 16), ("float32", "float32"))
    with pytest.raises(ValueError, match="d=40 and f=16 must be multiples of 16"):
        run(arguments, None)
    with pytest.raises(ValueError, match="it runs on gpu, this is cpu"):
        gather_gemv(*arguments, implementation="gpu")


def test_lowers_for_cuda_inside_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tokens, all_of_it = jax.P("data"), jax.P()
    arguments, _ = case((24, 2, 4, 64, 48), ("bfloat16", "bfloat16"))
    mapped = jax.shard_map(
        lambda *a: gather_gemv_gpu(*a, None),
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, all_of_it, all_of_it, all_of_it),
        out_specs=tokens,
    )
    lowered = jax.jit(mapped).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert len(verified_kernels(lowered)) == 2
