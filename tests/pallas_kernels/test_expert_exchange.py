"""The expert exchange on one to eight (fake) devices against float64 and the plain form."""

import functools
import importlib

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
    combine,
    dispatch,
    exchange_layer,
)
from pallas_kernels.expert_exchange.reference import combine_reference, dispatch_reference
from pallas_kernels.grouped_matmul import grouped_matmul

EXPERTS = 8
DIM = 20
RELATIVE_ERROR = {"float32": 1e-6, "bfloat16": 8e-3}
ON_EXPERTS = P("expert")


def make_mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (devices,), ("expert",), devices=jax.devices()[:devices], axis_types=(AxisType.Explicit,)
    )


def rows_of_experts(scale: jax.Array, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """Stands for the experts: any function of a row and its expert's weights [e, d]."""
    expert = jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=len(rows))
    rows = _kept(rows, jnp.sum(sizes))
    y = jnp.sin(rows.astype(jnp.float32) * scale[expert]).astype(rows.dtype)
    return _kept(y, jnp.sum(sizes))


def _kept(rows: jax.Array, count: jax.Array) -> jax.Array:
    """Zeros in the rows past the last, in the gradient too, whatever they hold."""
    return jnp.where(jnp.arange(len(rows))[:, None] < count, rows, jnp.zeros((), rows.dtype))


@pytest.fixture(autouse=True)
def _nobody_sends_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that nobody sends, which are zeros on a CPU, hold NaN, as they may on accelerators."""

    def nan(total: int, like: jax.Array) -> jax.Array:
        rows = jnp.full((total, like.shape[1]), jnp.nan, like.dtype)
        return varying.vary(rows, varying.varying(like))

    api = importlib.import_module("pallas_kernels.expert_exchange.api")
    monkeypatch.setattr(api, "blank", nan)


class Problem:
    """Tokens, choices, weights, the experts' parameters and a cotangent, as NumPy arrays."""

    def __init__(
        self,
        tokens: int,
        choices: int,
        dtype: str = "float32",
        experts: int = EXPERTS,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((tokens, DIM)).astype(jnp.dtype(dtype))
        self.ids = rng.integers(-2, experts + 2, (tokens, choices)).astype(np.int32)
        self.weights = rng.standard_normal((tokens, choices)).astype(np.float32)
        self.scale = rng.standard_normal((experts, DIM)).astype(np.float32)
        self.cotangent = rng.standard_normal((tokens, DIM)).astype(jnp.dtype(dtype))

    def float64(self) -> tuple[np.ndarray, ...]:
        """What `layer` returns, by summing all experts on all tokens."""
        x, scale, cotangent = (a.astype(np.float64) for a in (self.x, self.scale, self.cotangent))
        mine = self.ids[..., None] == np.arange(len(scale))  # [t, k, e]
        share = (mine * self.weights[..., None].astype(np.float64)).sum(1)
        angle = x[:, None] * scale  # [t, e, d]
        d_y = share[..., None] * cotangent[:, None]
        d_share = (np.sin(angle) * cotangent[:, None]).sum(-1)
        return (
            (share[..., None] * np.sin(angle)).sum(1),
            mine.any(1).sum(0),
            (d_y * np.cos(angle) * scale).sum(1),
            (mine * d_share[:, None]).sum(-1),
            (d_y * np.cos(angle) * x[:, None]).sum(0),
        )

    def arguments(self) -> tuple[np.ndarray, ...]:
        return self.x, self.ids, self.weights, self.scale, self.cotangent


@functools.cache
def compiled(devices: int, method: str | None, room: int | None, experts: int):  # noqa: ANN201
    mesh = make_mesh(devices)
    options = {"num_experts": experts, "axis": "expert", "method": method, "room": room}

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(ON_EXPERTS,) * 4, out_specs=(ON_EXPERTS,) * 2
    )
    def layer(x, ids, weights, scale):  # noqa: ANN001, ANN202
        return exchange_layer(rows_of_experts, scale, x, ids, weights, **options)

    @jax.jit
    def with_gradients(x, ids, weights, scale, cotangent):  # noqa: ANN001, ANN202
        def run(x, weights, scale):  # noqa: ANN001, ANN202
            return layer(x, ids, weights, scale)

        out, pull, counts = jax.vjp(run, x, weights, scale, has_aux=True)
        return out, counts, *pull(cotangent)

    return with_gradients


def layer(
    problem: Problem, devices: int, method: str | None = None, room: int | None = None
) -> tuple[np.ndarray, ...]:
    """Output, counts, and the gradients of x, the weights and the experts' parameters."""
    sharding = NamedSharding(make_mesh(devices), ON_EXPERTS)
    arguments = [jax.device_put(a, sharding) for a in problem.arguments()]
    run = compiled(devices, method, room, len(problem.scale))
    return tuple(np.asarray(a) for a in run(*arguments))


def assert_close(got: tuple, want: tuple, dtype: str = "float32") -> None:
    for name, a, b in zip(("out", "counts", "dx", "dw", "dscale"), got, want, strict=True):
        error = np.abs(a.astype(np.float64) - b).max(initial=0)
        assert error <= RELATIVE_ERROR[dtype] * np.abs(b).max(initial=0), name


def assert_same_bits(got: tuple, want: tuple) -> None:
    """Of what a token gets; the experts' own gradients sum over tokens, in any order."""
    for name, a, b in zip(("out", "counts", "dx", "dw"), got, want, strict=False):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes(), name


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
@pytest.mark.parametrize("room", [1, 7, 12])
def test_rounds_change_no_bit(devices: int, method: str, room: int) -> None:
    problem = Problem(24, 3)
    whole = layer(problem, devices, method)
    rounds = layer(problem, devices, method, room)
    assert_same_bits(rounds, whole)
    assert_close(rounds, problem.float64())


@pytest.mark.parametrize("method", METHODS)
def test_two_axes_as_one(method: str) -> None:
    problem, axes = Problem(24, 3), ("expert", "tensor")
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Explicit,) * 2)
    spec = P(axes)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec)
    def run(x, ids, weights, scale):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": axes, "method": method, "room": 4}
        return exchange_layer(rows_of_experts, scale, x, ids, weights, **options)[0]

    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a in problem.arguments()[:4]]
    assert_same_bits((np.asarray(jax.jit(run)(*placed)),), layer(problem, 8, method)[:1])


def _all_on(expert: int, problem: Problem) -> None:
    problem.ids[:] = expert


def _nobody(problem: Problem) -> None:
    problem.ids[:] = np.where(problem.ids % 2, -7, 2**31 - 1)


def _one_device(problem: Problem) -> None:
    problem.ids[:] = problem.ids % 2 + 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "load",
    [functools.partial(_all_on, 0), functools.partial(_all_on, 7), _nobody, _one_device],
    ids=["first expert", "last expert", "nobody", "two experts of one device"],
)
def test_extreme_loads(load, method: str) -> None:  # noqa: ANN001
    problem = Problem(24, 3)
    load(problem)
    for room in (None, 5):
        got = layer(problem, 4, method, room)
        assert_close(got, problem.float64())
        assert_same_bits(got, layer(problem, 1, "all_gather"))


@pytest.mark.parametrize(
    ("tokens", "choices", "experts", "devices", "method"),
    [
        (0, 3, 8, 4, None),  # no tokens
        (4, 0, 8, 4, None),  # no choices
        (4, 1, 4, 4, "all_gather"),  # one token and one expert a device
        (14, 5, 6, 2, "all_to_all"),  # odd; more choices than experts here
        (4, 5, 4, 4, "all_gather"),  # more choices than experts at all, so that some stand twice
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
    room=st.sampled_from([None, 5]),
    popular=st.lists(st.integers(-1, EXPERTS), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_load(
    devices: int, method: str, room: int | None, popular: list[int], seed: int
) -> None:
    problem = Problem(24, 3, seed=seed)
    problem.ids[:] = np.random.default_rng(seed).choice(popular, problem.ids.shape)
    got = layer(problem, devices, method, room)
    assert_close(got, problem.float64())
    assert_same_bits(got, layer(problem, 1, "all_gather"))


@pytest.mark.parametrize("method", METHODS)
def test_a_token_does_not_depend_on_the_others(method: str) -> None:
    problem, other = Problem(24, 3), Problem(8, 3, seed=1)
    everything = layer(problem, 4, method)
    place = np.array([17, 3])  # of 24, now on other devices and among others
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
    """`jax.lax.ragged_all_to_all` as its documentation has it, NaN where it is misused."""
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
@pytest.mark.parametrize("room", [None, 5])
def test_ragged_all_to_all_of_accelerators(
    method: str, room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(24, 3)
    want = layer(problem, 4, method)
    ragged = importlib.import_module("pallas_kernels.expert_exchange.ragged")
    monkeypatch.setattr(ragged, "platform", lambda: "tpu")
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", _documented_ragged_all_to_all)
    compiled.cache_clear()
    try:
        assert_same_bits(layer(problem, 4, method, room), want)
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
        options = {"num_experts": EXPERTS, "axis": "expert", "room": 4}
        return exchange_layer(rows_of_experts, scale, x, ids, weights, **options)[0]

    arguments = zip(problem.arguments(), (*(tokens,) * 3, ON_EXPERTS), strict=False)
    out = run(*(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in arguments))
    assert np.asarray(out).tobytes() == layer(problem, 1)[0].tobytes()


@pytest.mark.parametrize("room", [None, 5])
def test_swiglu_of_grouped_products(room: int | None) -> None:
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
            options = {"num_experts": EXPERTS, "axis": "expert", "room": room}
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


def test_devices_of_other_axes_go_along() -> None:
    """A sum over `data` stands in the loop: where one half needs no round, it takes part."""
    problem = Problem(24, 3)
    problem.ids[:12], problem.ids[12:] = -1, 0
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(AxisType.Explicit,) * 2)
    tokens = P(("data", "expert"))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(*(tokens,) * 3, ON_EXPERTS), out_specs=tokens
    )
    def layer(x, ids, weights, scale):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": "expert", "room": 4}
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


@pytest.mark.parametrize("kept", [4, 5])
def test_experts_that_lose_rows_or_columns_are_refused(kept: int) -> None:
    def ffn(params, rows, sizes):  # noqa: ANN001, ANN202
        return rows[:4] if kept == 4 else rows[:, 1:]

    @functools.partial(
        jax.shard_map, mesh=make_mesh(4), in_specs=P(), out_specs=P(), check_vma=False
    )
    def layer(x, ids, weights):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": "expert", "room": 5}
        return exchange_layer(ffn, (), x, ids, weights, **options)[0]

    with pytest.raises(ValueError, match=r"ffn returned float32.*, wanted float32\(5, 20\)"):
        jax.eval_shape(layer, *Problem(24, 3).arguments()[:3])


def test_cheaper_dispatch() -> None:
    # 1,024 tokens of 4,096 bfloat16s, top-8 of 256. On 4 devices, 3 * 1024 * (8192 + 32) bytes
    # come by all-gather, and 3 / 4 * 1024 * 8 * 8192, twice as many, by all-to-all.
    methods = [cheaper_dispatch(1024, 4096, 2, 8, 256, devices) for devices in (1, 4, 7, 8, 64)]
    assert methods == ["all_gather"] * 3 + ["all_to_all"] * 2
    assert cheaper_dispatch(1024, 4096, 2, 1, 256, 2) == "all_to_all"
    # A token chooses each of two experts at most once.
    assert cheaper_dispatch(1024, 4096, 2, 8, 2, 4) == "all_to_all"


def _call(devices: int = 2, axis: str = "expert", **changes: object) -> None:
    arguments = {
        "x": jnp.zeros((3, 4)),
        "ids": jnp.zeros((3, 2), jnp.int32),
        "weights": jnp.zeros((3, 2)),
        "num_experts": 4,
        "method": None,
        "y": lambda rows: rows,
        **changes,
    }

    @functools.partial(
        jax.shard_map, mesh=make_mesh(devices), in_specs=(), out_specs=P(), check_vma=False
    )
    def run():  # noqa: ANN202
        options = {name: arguments[name] for name in ("num_experts", "method")}
        rows, _, route = dispatch(arguments["x"], arguments["ids"], axis=axis, **options)
        return combine(arguments["y"](rows), arguments["weights"], route, axis=axis)

    jax.eval_shape(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 5}, "num_experts=5, wanted a positive multiple of the axis's 2 devices"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"axis": "experts"}, "axis='experts' is no mesh axis here"),
        ({"method": "ring"}, "method='ring', wanted one of all_gather, all_to_all or None"),
        ({"x": jnp.zeros(3)}, r"x is float32\(3,\), wanted bfloat16 or float32 \[t, d\]"),
        ({"x": jnp.zeros((3, 4), jnp.int32)}, "x is int32"),
        ({"ids": jnp.zeros((2, 2), jnp.int32)}, r"experts \(2, 2\), wanted \[3, k\]"),
        ({"ids": jnp.zeros((3, 2))}, r"experts are float32, wanted int32"),
        ({"ids": jnp.zeros((3, 2), jnp.uint8)}, r"experts are uint8, wanted int32"),
        ({"weights": jnp.zeros((3, 1))}, r"weights are float32\(3, 1\), wanted float32\(3, 2\)"),
        ({"weights": jnp.zeros((3, 2), jnp.bfloat16)}, "weights are bfloat16"),
        ({"y": lambda rows: rows[1:]}, r"y is float32\(11, 4\), wanted .* \[12, d\]"),
        ({"y": lambda rows: rows[0]}, r"y is float32\(4,\)"),
        ({"y": lambda rows: rows.astype(jnp.int32)}, "y is int32"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _call(**changes)


def test_no_room() -> None:
    tokens = jnp.zeros((3, 4)), jnp.zeros((3, 2), jnp.int32), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="room=0, wanted at least 1 row, or None"):
        exchange_layer(rows_of_experts, None, *tokens, num_experts=4, axis="expert", room=0)


def test_outside_shard_map() -> None:
    with pytest.raises(ValueError, match=r"call this inside jax\.shard_map"):
        dispatch(jnp.zeros((3, 4)), jnp.zeros((3, 2), jnp.int32), num_experts=4, axis="expert")
