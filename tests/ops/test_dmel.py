"""dMel and its bag of embeddings against plain NumPy and plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.config import AudioConfig
from interaction.ops import dmel

CFG = AudioConfig()


def _case(frames: int, width: int = 8) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(frames), 3)
    table = dmel.init_table(keys[0], CFG.mels, CFG.bins, width)
    bins = jax.random.randint(keys[1], (2, frames, CFG.mels), 0, CFG.bins)
    return table, bins, jax.random.normal(keys[2], (2, frames, width))


def test_bins_are_the_nearest_levels() -> None:
    log_mel = np.random.default_rng(0).uniform(-11, 4, (3, 50, CFG.mels)).astype(np.float32)
    levels = CFG.bin_low + CFG.bin_step * np.arange(CFG.bins)
    wanted = np.argmin(np.abs(log_mel[..., None].astype(np.float64) - levels), axis=-1)
    got = dmel.dmel_bins(jnp.asarray(log_mel), CFG)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, wanted)
    assert set(np.unique(got)) == set(range(CFG.bins))


@pytest.mark.parametrize("frames", [1, 8, 300])
def test_bag_equals_the_sum_of_rows(frames: int) -> None:
    table, bins, _ = _case(frames)
    wanted = np.asarray(table)[np.arange(CFG.mels), np.asarray(bins)].sum(-2)
    # measured: 0 where sums reach 4
    np.testing.assert_allclose(dmel.bag_of_embeddings(table, bins), wanted, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 8, 300])
def test_gradient_equals_autodiff_of_the_plain_form(frames: int) -> None:
    table, bins, weight = _case(frames)

    def plain(table: jax.Array) -> jax.Array:
        return jnp.sum(table[jnp.arange(CFG.mels), bins].sum(-2) * weight)

    got = jax.grad(lambda table: jnp.sum(dmel.bag_of_embeddings(table, bins) * weight))(table)
    # measured: 6e-6 where gradients reach 22
    np.testing.assert_allclose(got, jax.grad(plain)(table), atol=5e-5)


def test_a_frame_does_not_depend_on_its_neighbours() -> None:
    table, bins, _ = _case(32)
    bag = jax.jit(dmel.bag_of_embeddings)
    np.testing.assert_array_equal(bag(table, bins)[:1, 8:16], bag(table, bins[:1, 8:16]))


def test_neighbouring_levels_start_near_each_other() -> None:
    table = dmel.init_table(jax.random.key(0), CFG.mels, CFG.bins, 128)
    near = jnp.linalg.norm(table[:, 1:] - table[:, :-1], axis=-1).mean()
    far = jnp.linalg.norm(table[:, -1] - table[:, 0], axis=-1).mean()
    assert far > 8 * near
    bins = jax.random.randint(jax.random.key(1), (64, CFG.mels), 0, CFG.bins)
    assert 0.7 < jnp.std(dmel.bag_of_embeddings(table, bins)) < 1.4


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="80 channels"):
        dmel.bag_of_embeddings(jnp.zeros((80, 16, 4)), jnp.zeros((2, 40), jnp.int32))
