"""Rotary phases against complex numbers in float64, near the start of a clock and around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.ops import rope

SHAPES = [(16, 10_000.0), (64, 10_000.0), (128, 1e6)]


def turn(x: np.ndarray, positions: np.ndarray, base: float) -> jax.Array:
    @jax.jit
    def run(x: jax.Array, positions: jax.Array) -> jax.Array:
        return rope.rotate(x, rope.rope_turn(positions, x.shape[-1], base))

    return run(x, positions.astype(np.uint32))


@pytest.mark.parametrize(("dim", "base"), SHAPES)
def test_a_rotation_is_a_product_with_a_unit_complex_number(dim: int, base: float) -> None:
    """Pair (i, i + dim / 2) at position p is multiplied by exp(i p base^(-2i / dim))."""
    rng = np.random.default_rng(0)
    positions = np.stack([np.arange(40), rng.integers(0, 4_000, 40)])
    x = rng.standard_normal((2, 40, 3, dim)).astype(np.float32)
    pairs = x[..., : dim // 2].astype(np.complex128) + 1j * x[..., dim // 2 :]
    frequency = base ** (-2 * np.arange(dim // 2) / dim)
    pairs *= np.exp(1j * positions[..., None, None] * frequency)
    wanted = np.concatenate([pairs.real, pairs.imag], axis=-1)
    # Largest difference seen: 8.3e-6 of values up to 4.
    np.testing.assert_allclose(turn(x, positions, base), wanted, atol=4e-5, rtol=0)


@pytest.mark.parametrize(("dim", "base"), SHAPES)
def test_scores_depend_on_the_distance_alone(dim: int, base: float) -> None:
    """At any place of the clock, across its wrap too: q at p + 7 and k at p as at 7 and 0."""
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 1, 1, 1, dim)).astype(np.float32)
    starts = np.array([0, 1, 1_000, 2**31 - 3, 2**32 - 7, 2**32 - 1], np.uint64)
    rows = np.ones((1, len(starts), 1, 1), np.float32)
    late = turn(q * rows, ((starts + 7) % 2**32)[None], base)
    early = turn(k * rows, starts[None], base)
    scores = np.sum(np.asarray(late, np.float64) * np.asarray(early, np.float64), axis=-1)
    # Largest difference seen: 2e-6 of scores up to 7.
    np.testing.assert_allclose(scores, np.full_like(scores, scores[0, 0]), atol=2e-5, rtol=0)


def test_a_rotation_keeps_the_dtype() -> None:
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    found = rope.rotate(x, rope.rope_turn(jnp.arange(2, dtype=jnp.uint32)[None], 8, 10_000.0))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


def test_late_positions_are_as_exact_as_early_ones() -> None:
    """RoPE angles at hour ten and after a wrap equal those of exact integer arithmetic."""
    steps = rope.rope_steps(64, 10_000.0).astype(object)
    for position in (0, 1, 36_000 * 5 * 16, 2**32 - 1):
        exact = np.array([(position * int(s)) % 2**32 for s in steps], np.float64) * 2**-32
        exact = np.where(exact >= 0.5, exact - 1, exact) * 2 * np.pi
        got = rope.rope_angles(jnp.array([position], jnp.uint32), 64, 10_000.0)[0]
        np.testing.assert_allclose(got, exact, atol=4e-7)  # measured: 2.1e-7, float32 rounding
