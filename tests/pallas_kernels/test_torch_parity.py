"""The PyTorch implementations in the benchmark have the same results as ours."""

import jax.numpy as jnp
import pytest

pytest.importorskip("torch", reason="needs the bench extra")

from pallas_kernels import bench_baselines as baselines
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.shapes import PRESETS, group_sizes
from tests.pallas_kernels.test_bench import CLOSE, error, step


def test_pytorch_has_the_same_results() -> None:
    x, ids, *others = step()
    wanted = gather_gemv(x, ids, *others, implementation="reference")
    calls = baselines.torch_gather_gemv(x, [ids, ids], *others, compiled=False)
    assert {"torch eager, gathered", "torch eager, dense"} <= set(calls)
    for name, run in calls.items():
        assert error(run(), wanted) <= CLOSE, name
    layer = PRESETS["demo"]
    sizes = jnp.asarray(group_sizes(60, layer, layer.experts))
    lhs = jnp.resize(x, (int(sizes.sum()), layer.dim))
    wanted = grouped_matmul(lhs, others[1], sizes, implementation="reference")
    ends = jnp.cumsum(sizes, dtype=jnp.int32)
    for name, run in baselines.torch_grouped_matmul(lhs, others[1], [ends]).items():
        assert error(run(), wanted) <= CLOSE, name
