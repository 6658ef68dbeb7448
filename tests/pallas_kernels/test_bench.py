"""The benchmark runs, and the implementations that it compares have the same results."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import bench, bench_baselines as baselines
from pallas_kernels.gather_gemv import gather_gemv
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.shapes import PRESETS, choose, group_sizes
from pallas_kernels.timing import in_one_program

FIELDS = {
    *("op", "implementation", "platform", "preset", "tokens", "dtype"),
    *("time_us", "bytes", "share", "ratio", "label"),
}
CLOSE = 1e-5  # of the largest value; measured 5e-7


def error(got: object, wanted: jax.Array) -> float:
    return float(np.abs(np.asarray(got) - np.asarray(wanted)).max() / np.abs(wanted).max())


def step() -> tuple[jax.Array, ...]:
    layer, rng = PRESETS["demo"], np.random.default_rng(0)
    e, d, f = layer.experts, layer.dim, layer.ffn
    ids = choose(24, layer)
    matrices = [rng.normal(size=s) / s[1] ** 0.5 for s in ((e, d, f), (e, d, f), (e, f, d))]
    x, weights, *matrices = (
        jnp.asarray(a, jnp.float32)
        for a in (rng.normal(size=(24, d)), rng.uniform(size=ids.shape), *matrices)
    )
    return x, jnp.asarray(ids), weights, *matrices


def test_a_short_run_on_cpu(tmp_path: pathlib.Path) -> None:
    rows = bench.cpu_rows(repetitions=2)
    assert {row.op for row in rows} == {
        "gather_gemv",
        "grouped_matmul",
        "grouped_matmul with gradients",
    }
    for row in rows:
        assert set(json.loads(json.dumps(dataclasses.asdict(row)))) == FIELDS
        assert row.time_us > 0 and row.ratio > 0
        assert row.label.startswith("measured on CPU (")
        assert row.ratio == 1 or row.implementation != "xla"
    assert len(bench.table(rows).splitlines()) == len(rows) + 2
    bench.draw(rows, tmp_path / "times.png")
    assert (tmp_path / "times.png").stat().st_size > 0


def test_other_implementations_have_the_same_results() -> None:
    some = step()
    wanted = gather_gemv(*some, implementation="reference")
    assert error(jax.jit(baselines.gather_gemv_all_rows)(*some), wanted) <= CLOSE
    assert error(jax.jit(baselines.gather_gemv_ragged_dot)(*some), wanted) <= CLOSE
    layer = PRESETS["demo"]
    sizes = group_sizes(60, layer, layer.experts)
    lhs = jnp.resize(some[0], (sizes.sum(), layer.dim))
    wanted = grouped_matmul(lhs, some[3], jnp.asarray(sizes), implementation="reference")
    known = functools.partial(baselines.grouped_matmul_known_sizes, group_sizes=sizes)
    assert error(jax.jit(known)(lhs, some[3]), wanted) <= CLOSE
    assert error(jax.jit(jax.lax.ragged_dot)(lhs, some[3], jnp.asarray(sizes)), wanted) <= CLOSE


def test_all_calls_of_one_program_run() -> None:
    run = in_one_program(lambda i, x: x * i, 5, jnp.ones(3))
    np.testing.assert_array_equal(run(), np.full(3, 4.0))
