"""Rows that a device reads from the one before it along an axis, and heads that a mesh splits."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from interaction import presets
from interaction.distributed import sharding
from interaction.distributed.collectives import SEQUENCE, last_rows_before

ROWS = 3


def before(x: np.ndarray) -> np.ndarray:
    mesh, split = sharding.make_mesh({SEQUENCE: 8}), P(None, SEQUENCE)
    read = functools.partial(last_rows_before, rows=ROWS, axis=SEQUENCE)
    body = jax.shard_map(read, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    return np.asarray(jax.jit(body)(x))


@pytest.mark.parametrize("own", [3, 5])
def test_each_device_reads_the_last_rows_of_the_one_before(own: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8 * own, 4)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (ROWS, 0), (0, 0)))
    wanted = [padded[:, device * own : device * own + ROWS] for device in range(8)]
    np.testing.assert_array_equal(before(x), np.concatenate(wanted, axis=1))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 positions on a device of sequence=8"):
        before(np.zeros((1, 16, 4), np.float32))


@pytest.mark.parametrize("name", ["kv_heads", "sliding_kv_heads"])
def test_kv_heads_of_both_kinds_are_checked(name: str) -> None:
    tiny = presets.tiny().decoder
    heads = {"heads": 4, "kv_heads": 4, "sliding_kv_heads": 4}
    mesh = sharding.abstract_mesh({"tensor": 4})
    sharding.check_heads(mesh, dataclasses.replace(tiny, **heads))
    with pytest.raises(ValueError, match=f"wanted a divisor of {name}=2"):
        sharding.check_heads(mesh, dataclasses.replace(tiny, **{**heads, name: 2}))
