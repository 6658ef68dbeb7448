"""The router against NumPy in float64, token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from interaction.ops import router


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (8, 1), (16, 6), (5, 5)])
def test_route(experts: int, top_k: int) -> None:
    """The best by score plus bias, in ascending order; weights are shares of the scores alone."""
    rng = np.random.default_rng(0)
    logits = (2 * rng.standard_normal((60, experts))).astype(np.float32)
    bias = (0.3 * rng.standard_normal(experts)).astype(np.float32)
    chosen, weights = router.route(jnp.asarray(logits), jnp.asarray(bias), top_k)
    assert chosen.dtype == jnp.int32 and weights.dtype == jnp.float32
    moved = 0
    for token, row in enumerate(logits.astype(np.float64)):
        scores = 1 / (1 + np.exp(-row))
        best = sorted(np.argsort(-(scores + bias))[:top_k].tolist())
        assert chosen[token].tolist() == best
        # Largest difference seen: 1.2e-7.
        np.testing.assert_allclose(weights[token], scores[best] / scores[best].sum(), atol=5e-7)
        moved += best != sorted(np.argsort(-scores)[:top_k].tolist())
    assert moved or top_k == experts, "the bias selects"
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1.0, atol=5e-7)


def test_of_equal_scores_the_first_experts_are_chosen() -> None:
    chosen, weights = router.route(jnp.zeros((1, 6)), jnp.zeros(6), 3)
    assert chosen.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(weights, [[1 / 3] * 3], rtol=1e-6)
