"""Arguments that the expert exchange refuses, and what its messages say."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels.expert_exchange import combine, dispatch, exchange_layer
from tests.pallas_kernels.exchange_problem import EXPERTS, Problem, make_mesh, rows_of_experts


@pytest.mark.parametrize("kept", [4, 5])
def test_experts_that_lose_rows_or_columns_are_refused(kept: int) -> None:
    def ffn(params, rows, sizes):  # noqa: ANN001, ANN202
        return rows[:4] if kept == 4 else rows[:, 1:]

    @functools.partial(
        jax.shard_map, mesh=make_mesh(4), in_specs=P(), out_specs=P(), check_vma=False
    )
    def layer(x, ids, weights):  # noqa: ANN001, ANN202
        options = {"num_experts": EXPERTS, "axis": "expert", "chunk_rows": 5}
        return exchange_layer(ffn, (), x, ids, weights, **options)[0]

    with pytest.raises(ValueError, match=r"ffn returned float32.*, wanted float32\(5, 20\)"):
        jax.eval_shape(layer, *Problem(24, 3).arguments()[:3])


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


def test_chunks_without_rows() -> None:
    tokens = jnp.zeros((3, 4)), jnp.zeros((3, 2), jnp.int32), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="chunk_rows=0, wanted at least 1 row, or None"):
        exchange_layer(rows_of_experts, None, *tokens, num_experts=4, axis="expert", chunk_rows=0)


def test_outside_shard_map() -> None:
    with pytest.raises(ValueError, match=r"call this inside jax\.shard_map"):
        dispatch(jnp.zeros((3, 4)), jnp.zeros((3, 2), jnp.int32), num_experts=4, axis="expert")
