"""The order in which a token's experts are summed, bit by bit against NumPy in float32.

Experts are made of powers of two, so that each one's part is exact in float32 and in bfloat16, and
only the order and the precision of the sum decide which bits come out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from interaction.distributed import experts, sharding
from interaction.distributed.collectives import AXES
from interaction.ops import router

pytestmark = pytest.mark.optimised

E, K, D, F = 8, 4, 32, 4
_RNG = np.random.default_rng(0)
# What an expert puts out for a token: its row, the same for all tokens. One beside 2**24 is lost.
ROWS = _RNG.choice([-1, 1], (E, D)) * 2.0 ** _RNG.choice([0, 1, 24, 25], (E, D))


def layer(dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gate, up and down of experts whose output for the token (64, 1, 0, ...) is their row.

    silu(64) is 64 in float32, and up brings the hidden value to one.
    """
    gate, up, down = (np.zeros(shape, np.float32) for shape in ((E, D, F), (E, D, F), (E, F, D)))
    gate[:, 0], up[:, 1], down[:, 0] = 1, 1 / 64, ROWS
    return tuple(jnp.asarray(x, dtype) for x in (gate, up, down))


def problem(tokens: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = np.zeros((tokens, D))
    x[:, :2] = 64, 1
    chosen = np.sort(np.argsort(rng.random((tokens, E)), axis=1)[:, :K], axis=1)
    weights = rng.choice([0.5, 1], (tokens, K))
    return x.astype(jnp.dtype(dtype)), chosen.astype(np.int32), weights.astype(np.float32)


def summed(
    chosen: np.ndarray, weights: np.ndarray, dtype: str, turned: bool = False, wide: bool = True
) -> np.ndarray:
    """One expert after the other, in ascending order unless `turned`, rounded to `dtype` once."""
    totals = np.zeros((len(chosen), D), np.float32 if wide else jnp.bfloat16)
    for total, ids, shares in zip(totals, chosen, weights, strict=True):
        for choice in reversed(range(K)) if turned else range(K):
            total += (shares[choice] * ROWS[ids[choice]]).astype(total.dtype)
    return totals.astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # sorted by expert; few are streamed
def test_one_device_sums_in_ascending_order(
    monkeypatch: pytest.MonkeyPatch, platform: str, dtype: str
) -> None:
    monkeypatch.setattr(experts, "platform", lambda: platform)
    x, chosen, weights = problem(32, dtype)
    wanted = summed(chosen, weights, dtype)
    # What a test of the order is worth: shares of the numbers that would be others.
    assert np.mean(wanted != summed(chosen, weights, dtype, turned=True)) > 0.03
    assert np.mean(wanted != summed(chosen, weights, dtype, wide=False)) > 0.03

    @jax.jit
    def run(x: jax.Array, chosen: jax.Array, weights: jax.Array, *matrices: jax.Array) -> jax.Array:
        return experts.chosen_experts(x, chosen, weights, experts.Experts(*matrices, E))

    found = run(x, chosen, weights, *layer(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, wanted)


# 2 tokens a device: on a TPU all go to all; else they are exchanged
@pytest.mark.parametrize(("platform", "tokens"), [("tpu", 16), ("cpu", 16), ("cpu", 320)])
def test_a_device_for_each_expert_sums_in_ascending_order(
    monkeypatch: pytest.MonkeyPatch, platform: str, tokens: int
) -> None:
    monkeypatch.setattr(experts, "platform", lambda: platform)
    x, chosen, weights = problem(tokens, "float32")
    mesh = Mesh(np.reshape(jax.devices()[:E], sharding.mesh_shape({"expert": E})), AXES)

    def run(x: jax.Array, chosen: jax.Array, weights: jax.Array, *matrices: jax.Array) -> jax.Array:
        return experts.chosen_experts(x, chosen, weights, experts.Experts(*matrices, 1))

    split = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    together = split(run, in_specs=(P("expert"),) * 6, out_specs=P("expert"))
    found = jax.jit(together)(x, chosen, weights, *layer("float32"))
    np.testing.assert_array_equal(found, summed(chosen, weights, "float32"))


def test_the_router_chooses_in_ascending_order() -> None:
    """By hand: of scores in any order, of equal ones the first; a weight goes with its expert."""
    logits = jnp.asarray([[0.0, 3.0, 1.0, 2.0], [2.0, -1.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    chosen, weights = router.route(logits, jnp.zeros(4), 2)
    assert chosen.tolist() == [[1, 3], [0, 2], [0, 1]]
    score = 1 / (1 + np.exp(-np.arange(4.0)))
    by_hand = [
        [score[3] / (score[3] + score[2]), score[2] / (score[3] + score[2])],
        [score[2] / (score[3] + score[2]), score[3] / (score[3] + score[2])],
        [0.5, 0.5],
    ]
    np.testing.assert_allclose(weights, by_hand, rtol=1e-6)  # measured: 6e-8
    # A shared expert whose score is next to 0 changes no weight.
    beside = jnp.concatenate([logits, jnp.full((3, 1), -40.0)], axis=1)
    chosen, weights, _ = router.route_with_shared(beside, jnp.zeros(4), 2, 1, jnp.float32(1))
    assert chosen.tolist() == [[1, 3], [0, 2], [0, 1]]
    np.testing.assert_allclose(weights, by_hand, rtol=1e-6)  # measured: 7e-8
