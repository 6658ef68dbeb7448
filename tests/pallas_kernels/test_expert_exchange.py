"""The expert exchange on one to eight fake devices against float64 and the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from pallas_kernels import varying
from pallas_kernels.expert_exchange import (
    METHODS,
    cheaper_dispatch,
    differentiable,
    dispatch,
    exchange_layer,
    ragged,
)
from pallas_kernels.expert_exchange.reference import combine_reference, dispatch_reference
from pallas_kernels.grouped_matmul import grouped_matmul
from tests.pallas_kernels.exchange_problem import (
    DIM,
    EXPERTS,
    ON_EXPERTS,
    Problem,
    assert_close,
    assert_same_bits,
    compiled,
    layer,
    make_mesh,
    rows_of_experts,
)


@pytest.fixture(autouse=True)
def _uninitialised_rows_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills uninitialised rows with NaN: on a CPU they are zeros, on accelerators any values."""

    def nan(total: int, like: jax.Array) -> jax.Array:
        rows = jnp.full((total, like.shape[1]), jnp.nan, like.dtype)
        return varying.vary(rows, varying.varying(like))

    monkeypatch.setattr(differentiable, "blank", nan)


@pytest.mark.optimised
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_values_and_gradients_on_any_number_of_devices(devices: int, method: str) -> None:
    problem = Problem(24, 3)
    got = layer(problem, devices, method)
    assert_close(got, problem.float64())
    assert_same_bits(got, layer(problem, 1, "all_gather"))


def test_bfloat16() -> None:
    problem = Problem(24, 3, "bfloat16")
    got = layer(problem, 8, "all_to_all")
    assert_close(got, problem.float64(), "bfloat16")
    assert_same_bits(got, layer(problem, 1, "all_gather"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("chunk_rows", [1, 7, 12])
def test_chunks_change_no_bit(devices: int, method: str, chunk_rows: int) -> None:
    problem = Problem(24, 3)
    whole = layer(problem, devices, method)
    chunked = layer(problem, devices, method, chunk_rows)
    assert_same_bits(chunked, whole)
    assert_close(chunked, problem.float64())


@pytest.mark.parametrize("method", METHODS)
def test_two_axes_used_as_one(method: str) -> None:
    problem, axes = Problem(24, 3), ("expert", "tensor")
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Explicit,) * 2)
    spec = P(axes)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec)
    def run(x, ids, weights, scale):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": axes, "method": method, "chunk_rows": 4}
        return exchange_layer(rows_of_experts, scale, x, ids, weights, **options)[0]

    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a in problem.arguments()[:4]]
    assert_same_bits((np.asarray(jax.jit(run)(*placed)),), layer(problem, 8, method)[:1])


def _all_on(expert: int, problem: Problem) -> None:
    problem.ids[:] = expert


def _no_expert(problem: Problem) -> None:
    problem.ids[:] = np.where(problem.ids % 2, -7, 2**31 - 1)


def _one_device(problem: Problem) -> None:
    problem.ids[:] = problem.ids % 2 + 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "load",
    [functools.partial(_all_on, 0), functools.partial(_all_on, 7), _no_expert, _one_device],
    ids=["first expert", "last expert", "no expert", "two experts of one device"],
)
def test_extreme_loads(load, method: str) -> None:  # noqa: ANN001
    problem = Problem(24, 3)
    load(problem)
    for chunk_rows in (None, 5):
        got = layer(problem, 4, method, chunk_rows)
        assert_close(got, problem.float64())
        assert_same_bits(got, layer(problem, 1, "all_gather"))


@pytest.mark.parametrize(
    ("tokens", "choices", "experts", "devices", "method"),
    [
        (0, 3, 8, 4, None),  # no tokens
        (4, 0, 8, 4, None),  # no choices
        (4, 1, 4, 4, "all_gather"),  # one token and one expert per device
        (14, 5, 6, 2, "all_to_all"),  # odd sizes; more choices than experts on a device
        (4, 5, 4, 4, "all_gather"),  # more choices than experts, so that some are repeated
    ],
)
def test_odd_sizes(
    tokens: int, choices: int, experts: int, devices: int, method: str | None
) -> None:
    problem = Problem(tokens, choices, experts=experts)
    assert_close(layer(problem, devices, method), problem.float64())


@settings(max_examples=100, deadline=None)
@given(
    devices=st.sampled_from([2, 4, 8]),
    method=st.sampled_from(METHODS),
    chunk_rows=st.sampled_from([None, 5]),
    popular=st.lists(st.integers(-1, EXPERTS), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_load(
    devices: int, method: str, chunk_rows: int | None, popular: list[int], seed: int
) -> None:
    problem = Problem(24, 3, seed=seed)
    problem.ids[:] = np.random.default_rng(seed).choice(popular, problem.ids.shape)
    got = layer(problem, devices, method, chunk_rows)
    assert_close(got, problem.float64())
    assert_same_bits(got, layer(problem, 1, "all_gather"))


@pytest.mark.optimised
@pytest.mark.parametrize("method", METHODS)
def test_a_token_does_not_depend_on_the_others(method: str) -> None:
    problem, other = Problem(24, 3), Problem(8, 3, seed=1)
    everything = layer(problem, 4, method)
    place = np.array([17, 3])  # of 24 tokens; in `other`, on other devices, beside other tokens
    for name in ("x", "ids", "weights", "cotangent"):
        getattr(other, name)[[1, 6]] = getattr(problem, name)[place]
    other.scale = problem.scale
    few = layer(other, 4, method)
    for all_, some in zip((everything[0], *everything[2:4]), (few[0], *few[2:4]), strict=True):
        assert some[[1, 6]].tobytes() == all_[place].tobytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("devices", [1, 4])
def test_rows_and_counts(devices: int, method: str) -> None:
    problem = Problem(24, 3)
    mesh = make_mesh(devices)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(ON_EXPERTS,) * 2, out_specs=(ON_EXPERTS,) * 2
    )
    def run(x, ids):  # noqa: ANN001, ANN202
        rows, sizes, _ = dispatch(x, ids, num_experts=EXPERTS, axis="expert", method=method)
        return rows, sizes

    sharding = NamedSharding(mesh, ON_EXPERTS)
    got = run(*(jax.device_put(a, sharding) for a in (problem.x, problem.ids)))
    rows, sizes = (np.asarray(a) for a in got)
    want_rows, want_sizes = (np.asarray(a) for a in dispatch_reference(*problem.arguments()[:2], 8))
    np.testing.assert_array_equal(sizes, want_sizes)
    assert rows.shape == (devices * 24 * min(3, EXPERTS // devices), DIM)
    parts = np.split(rows, devices)
    used = sizes.reshape(devices, -1).sum(1)
    packed = np.concatenate([part[:count] for part, count in zip(parts, used, strict=True)])
    assert packed.tobytes() == want_rows[: len(packed)].tobytes()
    assert not any(part[count:].any() for part, count in zip(parts, used, strict=True))
    assert not want_rows[len(packed) :].any()


@pytest.mark.parametrize("choices", [0, 3, 9])
def test_reference(choices: int) -> None:
    problem = Problem(11, choices)

    def plain(x, weights, scale):  # noqa: ANN001, ANN202
        rows, sizes = dispatch_reference(x, problem.ids, EXPERTS)
        y = rows_of_experts(scale, rows, sizes)
        return combine_reference(y, problem.ids, weights, EXPERTS), sizes

    @jax.jit
    def run(x, weights, scale, cotangent):  # noqa: ANN001, ANN202
        out, pull, sizes = jax.vjp(plain, x, weights, scale, has_aux=True)
        return out, sizes, *pull(cotangent)

    got = run(problem.x, problem.weights, problem.scale, problem.cotangent)
    assert_close(tuple(np.asarray(a) for a in got), problem.float64())


def _documented_ragged_all_to_all(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: str,
) -> jax.Array:
    """`jax.lax.ragged_all_to_all` as documented; returns NaN if its arguments do not fit."""
    starts, places, sizes = (
        jax.lax.all_to_all(table, axis_name, 0, 0, tiled=True)
        for table in (input_offsets, output_offsets, send_sizes)
    )
    everything = jax.lax.all_gather(operand, axis_name)
    row = jnp.arange(len(output))
    inside = (row >= places[:, None]) & (row < (places + sizes)[:, None])
    slice_ = jnp.argmax(inside, axis=0)
    sender = slice_ * len(everything) // len(sizes)
    sent = everything.at[sender, starts[slice_] + row - places[slice_]]
    sent = sent.get(mode="fill", fill_value=jnp.nan)
    output = jnp.where(jnp.any(inside, axis=0)[:, None], sent, output)
    fits = jnp.all(sizes == recv_sizes) & jnp.all(places + sizes <= len(output))
    return jnp.where(fits, output, jnp.nan)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_ragged_all_to_all_of_accelerators(
    method: str, chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(24, 3)
    want = layer(problem, 4, method)
    monkeypatch.setattr(ragged, "platform", lambda: "tpu")
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", _documented_ragged_all_to_all)
    compiled.cache_clear()
    try:
        assert_same_bits(layer(problem, 4, method, chunk_rows), want)
    finally:
        compiled.cache_clear()


def test_beside_a_data_axis() -> None:
    problem = Problem(24, 3)
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Explicit,) * 2)
    tokens = P(("data", "expert"))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(*(tokens,) * 3, ON_EXPERTS), out_specs=tokens
    )
    def run(x, ids, weights, scale):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": "expert", "chunk_rows": 4}
        return exchange_layer(rows_of_experts, scale, x, ids, weights, **options)[0]

    arguments = zip(problem.arguments(), (*(tokens,) * 3, ON_EXPERTS), strict=False)
    out = run(*(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in arguments))
    assert np.asarray(out).tobytes() == layer(problem, 1)[0].tobytes()


@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_swiglu_of_grouped_products(chunk_rows: int | None) -> None:
    problem = Problem(24, 3)
    rng = np.random.default_rng(1)
    matrices = rng.standard_normal((2, EXPERTS, DIM, DIM)).astype(np.float32) / 4

    def ffn(matrices, rows, sizes):  # noqa: ANN001, ANN202
        gate, up = matrices
        return jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)

    def run(devices: int) -> tuple[np.ndarray, ...]:
        mesh = make_mesh(devices)

        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(ON_EXPERTS,) * 5,
            out_specs=ON_EXPERTS,
        )
        def layer(x, ids, share, gate, up):  # noqa: ANN001, ANN202
            options = {"num_experts": EXPERTS, "axis": "expert", "chunk_rows": chunk_rows}
            return exchange_layer(ffn, (gate, up), x, ids, share, **options)[0]

        @jax.jit
        def with_gradients(x, ids, share, gate, up, cotangent):  # noqa: ANN001, ANN202
            out, pull = jax.vjp(lambda x, s, g, u: layer(x, ids, s, g, u), x, share, gate, up)
            return out, *pull(cotangent)

        arguments = (*problem.arguments()[:3], *matrices, problem.cotangent)
        sharding = NamedSharding(mesh, ON_EXPERTS)
        found = with_gradients(*(jax.device_put(a, sharding) for a in arguments))
        return tuple(np.asarray(a) for a in found)

    def plainly(x, share, gate, up):  # noqa: ANN001, ANN202
        mine = (problem.ids[..., None] == np.arange(EXPERTS)).astype(np.float32)
        hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate))
        hidden = hidden * jnp.einsum("td,edf->tef", x, up)
        return jnp.einsum("tef,tke,tk->tf", hidden, mine, share)

    with jax.default_matmul_precision("highest"):
        want, pull = jax.vjp(plainly, problem.x, problem.weights, *matrices)
        wanted = (want, *pull(problem.cotangent))
    found = run(8)
    for got, goal in zip(found, wanted, strict=True):
        assert np.abs(got - goal).max() <= 1e-6 * np.abs(goal).max()  # measured: 2e-7
    assert_same_bits(found[:1], run(1)[:1])


def test_devices_of_other_axes_run_as_many_chunks() -> None:
    """The loop has a sum over `data`: devices that need no chunk must take part in it."""
    problem = Problem(24, 3)
    problem.ids[:12], problem.ids[12:] = -1, 0
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Explicit,) * 2)
    tokens = P(("data", "expert"))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(*(tokens,) * 3, ON_EXPERTS), out_specs=tokens
    )
    def layer(x, ids, weights, scale):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": "expert", "chunk_rows": 4}
        return exchange_layer(rows_of_experts, scale, x, ids, weights, **options)[0]

    @jax.jit
    def with_gradients(x, ids, weights, scale, cotangent):  # noqa: ANN001, ANN202
        out, pull = jax.vjp(lambda *a: layer(a[0], ids, *a[1:]), x, weights, scale)
        return out, *pull(cotangent)

    specs = (*(tokens,) * 3, ON_EXPERTS, tokens)
    placed = zip(problem.arguments(), specs, strict=True)
    got = with_gradients(*(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in placed))
    out, _, *slopes = problem.float64()
    for a, b in zip(got, (out, *slopes), strict=True):
        assert np.abs(np.asarray(a) - b).max() <= 1e-6 * np.abs(b).max()


def test_cheaper_dispatch() -> None:
    # 1,024 tokens of 4,096 bfloat16 numbers, top-8 of 256. On 4 devices, an all-gather brings
    # 3 * 1024 * (8192 + 32) bytes, and an all-to-all 3 / 4 * 1024 * 8 * 8192, twice as many.
    methods = [cheaper_dispatch(1024, 4096, 2, 8, 256, devices) for devices in (1, 4, 7, 8, 64)]
    assert methods == ["all_gather"] * 3 + ["all_to_all"] * 2
    assert cheaper_dispatch(1024, 4096, 2, 1, 256, 2) == "all_to_all"
    # A token chooses each of two experts at most once.
    assert cheaper_dispatch(1024, 4096, 2, 8, 2, 4) == "all_to_all"
