"""Attention of one query at a time in float64: grouped heads, a sink, any mask."""

import jax
import numpy as np
import pytest

from interaction.ops.attention import attention_batch


@pytest.mark.parametrize(
    ("heads", "groups", "t", "s"),  # scores are taken either way round
    [(4, 2, 3, 20), (4, 2, 20, 3), (3, 1, 3, 20), (2, 2, 20, 3)],
)
def test_attention(heads: int, groups: int, t: int, s: int) -> None:
    rng = np.random.default_rng(0)
    b, dim = 2, 8
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((b, t, heads, dim), (b, s, groups, dim), (b, s, groups, dim))
    )
    sink = rng.standard_normal(heads).astype(np.float32)
    mask = rng.random((b, t, s)) < 0.5
    mask[0, 1] = False
    wanted = np.zeros((b, t, heads, dim))
    for row, query, head in np.ndindex(b, t, heads):
        group = head // (heads // groups)
        top, below = np.zeros(dim), np.exp(np.float64(sink[head]))
        for key in np.flatnonzero(mask[row, query]):
            score = np.dot(q[row, query, head].astype(np.float64), k[row, key, group])
            weight = np.exp(score / np.sqrt(dim))
            top, below = top + weight * v[row, key, group], below + weight
        wanted[row, query, head] = top / below
    found = jax.jit(attention_batch)(q, k, v, mask, sink)
    # Largest difference seen: 2.4e-7 of values up to 3.
    np.testing.assert_allclose(found, wanted, atol=2e-6, rtol=0)
    assert not np.any(found[0, 1])
