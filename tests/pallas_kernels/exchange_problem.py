"""A layer of experts with random tokens, its result in float64, and its run on fake devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from pallas_kernels.expert_exchange import exchange_layer

EXPERTS = 8
DIM = 20
RELATIVE_ERROR = {"float32": 1e-6, "bfloat16": 8e-3}
ON_EXPERTS = P("expert")


def make_mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (devices,), ("expert",), devices=jax.devices()[:devices], axis_types=(AxisType.Explicit,)
    )


def rows_of_experts(scale: jax.Array, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """Stands for the experts: a function of a row [d] and of its expert's parameters [d]."""
    expert = jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=len(rows))
    rows = _kept(rows, jnp.sum(sizes))
    y = jnp.sin(rows.astype(jnp.float32) * scale[expert]).astype(rows.dtype)
    return _kept(y, jnp.sum(sizes))


def _kept(rows: jax.Array, count: jax.Array) -> jax.Array:
    """Zeroes the rows past the last, in the gradient too."""
    return jnp.where(jnp.arange(len(rows))[:, None] < count, rows, jnp.zeros((), rows.dtype))


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
        """The result of `layer`, from all experts on all tokens."""
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
def compiled(devices: int, method: str | None, chunk_rows: int | None, experts: int):  # noqa: ANN201
    mesh = make_mesh(devices)
    options = {"num_experts": experts, "axis": "expert", "method": method, "chunk_rows": chunk_rows}

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
    problem: Problem, devices: int, method: str | None = None, chunk_rows: int | None = None
) -> tuple[np.ndarray, ...]:
    """Output, counts, and the gradients of x, the weights and the experts' parameters."""
    sharding = NamedSharding(make_mesh(devices), ON_EXPERTS)
    arguments = [jax.device_put(a, sharding) for a in problem.arguments()]
    run = compiled(devices, method, chunk_rows, len(problem.scale))
    return tuple(np.asarray(a) for a in run(*arguments))


def assert_close(got: tuple, want: tuple, dtype: str = "float32") -> None:
    for name, a, b in zip(("out", "counts", "dx", "dw", "dscale"), got, want, strict=True):
        error = np.abs(a.astype(np.float64) - b).max(initial=0)
        assert error <= RELATIVE_ERROR[dtype] * np.abs(b).max(initial=0), name


def assert_same_bits(got: tuple, want: tuple) -> None:
    """Compares all but the gradients of the experts' parameters, which are sums over tokens."""
    for name, a, b in zip(("out", "counts", "dx", "dw"), got, want, strict=False):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes(), name
