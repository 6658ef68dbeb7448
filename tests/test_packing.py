"""Small arrays travel as one and come back as they were."""

import jax
import jax.numpy as jnp
import numpy as np

from interaction.packing import pack


def test_what_is_unpacked_was_packed() -> None:
    rng = np.random.default_rng(0)
    params = {
        "scale": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        "large": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32),
        "layers": ({"bias": jnp.asarray(rng.normal(size=7), jnp.float32)}, jnp.float32(2.5)),
        "whole": jnp.arange(4),
        "half": jnp.ones(3, jnp.bfloat16),
    }
    packed, unpack = pack(params)
    assert packed[0].shape == (3 * 5 + 7 + 1,)
    assert len(packed[1]) == 3
    found = jax.jit(unpack)(packed)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_nothing_small_leaves_an_empty_vector() -> None:
    packed, unpack = pack((jnp.arange(4),))
    assert packed[0].shape == (0,)
    np.testing.assert_array_equal(unpack(packed)[0], jnp.arange(4))
