"""Layers: a loop over separate parameters equals the scan over stacked ones."""

import jax
import jax.numpy as jnp
import numpy as np

from interaction.ops.layers import run_stack, unstack

KEYS = jax.random.split(jax.random.key(0), 3)
STACK = {"w": 0.5 * jax.random.normal(KEYS[0], (4, 8, 8)), "b": jax.random.normal(KEYS[1], (4, 8))}
SCALE = np.arange(4, dtype=np.float32)


def outcome(params: dict | tuple, x: jax.Array) -> tuple:
    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, jax.Array]:
        weights, scale = layer
        x = jnp.tanh(x @ weights["w"] + scale * weights["b"])
        return x, jnp.sum(x)

    return run_stack(body, x, (params, SCALE))


def test_loop_equals_scan_with_gradients() -> None:
    x = jax.random.normal(KEYS[2], (3, 8))

    def loss(stack: dict, separate: bool) -> tuple[jax.Array, tuple]:
        x_end, sums = outcome(unstack(stack) if separate else stack, x)
        return jnp.sum(x_end**2) + jnp.sum(sums), (x_end, sums)

    results = [jax.grad(loss, has_aux=True)(STACK, separate) for separate in (False, True)]
    for scanned, looped in zip(*map(jax.tree.leaves, results), strict=True):
        # Largest difference seen: 9.5e-7 of gradients up to 4.5.
        np.testing.assert_allclose(scanned, looped, atol=1e-5, rtol=0)
    assert results[0][1][1].shape == (4,) and np.all(results[0][0]["w"] != 0)
