"""The router against NumPy: what it chooses, what it counts, and where its bias goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.ops import router

EXPERTS, TOP_K = 8, 2
SKEW = np.array([2.0, 1.0, 0.5, 0.0, 0.0, 0.0, -0.5, -1.0])


def _chosen(logits: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Experts of the largest biased sigmoid scores, ascending: [t, e] -> [t, TOP_K]."""
    scores = 1 / (1 + np.exp(-logits))
    return np.sort(np.argsort(-(scores + bias), axis=-1)[:, :TOP_K], axis=-1)


def test_bias_selects_and_does_not_weigh() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((64, EXPERTS)).astype(np.float32)
    bias = rng.standard_normal(EXPERTS).astype(np.float32)
    chosen, weights = router.route(jnp.asarray(logits), jnp.asarray(bias), TOP_K)
    wanted = _chosen(logits.astype(np.float64), bias.astype(np.float64))
    np.testing.assert_array_equal(chosen, wanted)
    assert np.any(wanted != _chosen(logits, np.zeros(EXPERTS))), "the bias matters"
    scores = 1 / (1 + np.exp(-np.take_along_axis(logits.astype(np.float64), wanted, axis=1)))
    wanted_weights = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, wanted_weights, atol=1e-6)  # measured: 1e-7


def test_shared_experts_take_part_in_the_normalisation() -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((64, EXPERTS + 3)).astype(np.float32)
    bias = rng.standard_normal(EXPERTS).astype(np.float32)
    given = jnp.asarray(logits), jnp.asarray(bias), TOP_K, 3, jnp.float32(2.5)
    chosen, weights, shared = router.route_with_shared(*given)
    wide = logits.astype(np.float64)
    wanted = _chosen(wide[:, :EXPERTS], bias.astype(np.float64))
    np.testing.assert_array_equal(chosen, wanted)
    scores = 1 / (1 + np.exp(-wide))
    both = np.concatenate([np.take_along_axis(scores, wanted, axis=1), scores[:, EXPERTS:]], axis=1)
    both *= 2.5 / both.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, both[:, :TOP_K], atol=1e-6)  # measured: 1e-7
    np.testing.assert_allclose(shared, both[:, TOP_K:], atol=1e-6)  # measured: 1e-7


def test_load_counts_no_padding() -> None:
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permuted(np.tile(np.arange(EXPERTS), (300, 1)), axis=1)[:, :3], axis=1)
    valid = rng.random(300) < 0.4
    wanted = np.bincount(chosen[valid].reshape(-1), minlength=EXPERTS)
    assert wanted.sum() == 3 * valid.sum() < chosen.size
    got = router.load(jnp.asarray(chosen, jnp.int32), jnp.asarray(valid), EXPERTS)
    np.testing.assert_array_equal(got, wanted)
    nothing = router.load(jnp.asarray(chosen, jnp.int32), jnp.zeros(300, bool), EXPERTS)
    np.testing.assert_array_equal(nothing, np.zeros(EXPERTS))


def test_bias_moves_against_the_load_of_its_own_layer() -> None:
    """By hand: means of 3 and 5 tokens, steps of 0.5; what has the mean stays."""
    load = jnp.asarray([[6.0, 2.0, 1.0, 3.0], [5.0, 5.0, 0.0, 10.0]])
    start = jnp.asarray([[0.0, 0.0, 1.0, 0.25], [0.0, -1.0, 0.0, 0.0]])
    wanted = [[-0.5, 0.5, 1.5, 0.25], [0.0, -1.0, 0.5, -0.5]]
    np.testing.assert_array_equal(router.update_bias(start, load, 0.5), wanted)


@pytest.mark.parametrize("rate", [4e-3, -4e-3])
def test_bias_evens_out_a_skewed_load(rate: float) -> None:
    """Layers of tokens that mostly want the same experts, routed and counted in NumPy.

    The fullest expert takes 3.3 times the mean. Against the load, the bias brings that down to
    about 1; along with the load (a negative rate), it grows towards 4, where all tokens go to the
    same two experts.
    """
    rng = np.random.default_rng(0)
    skews = np.stack([SKEW, SKEW[::-1]])
    update = jax.jit(router.update_bias, static_argnums=2)

    def loads(tokens: int) -> np.ndarray:
        logits = rng.standard_normal((2, tokens, EXPERTS)) + skews[:, None]
        chosen = [_chosen(*layer) for layer in zip(logits, np.asarray(bias), strict=True)]
        return np.stack([np.bincount(c.reshape(-1), minlength=EXPERTS) for c in chosen])

    def fullness(load: np.ndarray) -> np.ndarray:
        return load.max(axis=1) / load.mean(axis=1)

    bias = np.zeros((2, EXPERTS), np.float32)
    assert np.all(np.abs(fullness(loads(20_000)) - 3.3) < 0.1)
    for _ in range(300):
        bias = update(bias, loads(256).astype(np.float32), rate)
    found = fullness(loads(20_000))
    if rate > 0:
        assert found.max() < 1.2, found  # measured: 1.09
    else:
        assert found.min() > 3.5, found  # measured: 3.69
