"""Discretised log-mel and its bag of embeddings (dMel, arXiv 2407.15835)."""

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import AudioConfig
from interaction.ops.dense import exact
from interaction.types import Array

_TILE = 256  # frames whose one-hot exists at a time in the backward pass


def dmel_bins(log_mel: Array, cfg: AudioConfig) -> Array:
    """Nearest level of each channel.

    Args:
      log_mel: float32[..., mels], log10 magnitude.
      cfg: Configuration of the front end, of which `bins`, `bin_low` and `bin_step` are used.

    Returns:
      int32[..., mels] in [0, bins - 1].
    """
    level = jnp.round((log_mel - cfg.bin_low) / cfg.bin_step)
    return jnp.clip(level, 0, cfg.bins - 1).astype(jnp.int32)


def init_table(key: Array, mels: int, bins: int, width: int) -> Array:
    """Fresh embedding table whose neighbouring levels are near each other.

    A row is its channel's direction times the centred level, plus a little noise. The sum over
    channels of one row each has elements of about unit variance.

    Args:
      key: Typed PRNG key [].
      mels: Channels.
      bins: Levels of a channel.
      width: Width of the embedding.

    Returns:
      float32[mels, bins, width].
    """
    key_direction, key_noise = jax.random.split(key)
    level = jnp.linspace(-(3**0.5), 3**0.5, bins)[:, None]  # unit variance
    direction = jax.random.normal(key_direction, (mels, 1, width))
    noise = jax.random.normal(key_noise, (mels, bins, width))
    return (direction * level + 0.1 * noise) / mels**0.5


@jax.custom_vjp
def bag_of_embeddings(table: Array, bins: Array) -> Array:
    """Sum over channels of one table row each.

    Channels are added in ascending order for every batch, so the bits of a frame do not depend on
    the other frames. The gradient is a one-hot matrix product, not a scatter.

    Args:
      table: float[mels, bins, width].
      bins: int32[..., mels], each in [0, bins - 1].

    Returns:
      [..., width] in the table's dtype.

    Raises:
      ValueError: `bins` has another number of channels than `table`.
    """
    if bins.ndim < 1 or bins.shape[-1] != table.shape[0]:
        raise ValueError(
            f"bins: got shape {bins.shape}, wanted a last axis of {table.shape[0]} channels as"
            f" in table {table.shape}; build both from one AudioConfig"
        )

    mels, levels, width = table.shape
    rows, first = table.reshape(-1, width), jnp.arange(mels) * levels

    def add(total: Array, place: Array) -> tuple[Array, None]:
        return total + rows[place], None

    zeros = jnp.zeros((*bins.shape[:-1], width), table.dtype)
    return jax.lax.scan(add, zeros, jnp.moveaxis(bins + first, -1, 0), unroll=8)[0]


def _bag_forward(table: Array, bins: Array) -> tuple[Array, tuple[Array, Array]]:
    return bag_of_embeddings(table, bins), (table, bins)


def _bag_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, np.ndarray]:
    table, bins = residuals
    mels, levels, width = table.shape
    grad, index = grad.reshape(-1, width), bins.reshape(-1, mels)
    tile = min(_TILE, grad.shape[0])
    pad = -grad.shape[0] % tile
    grad = jnp.pad(grad, ((0, pad), (0, 0))).reshape(-1, tile, width)
    index = jnp.pad(index, ((0, pad), (0, 0))).reshape(-1, tile, mels)

    def add(total: Array, tiles: tuple[Array, Array]) -> tuple[Array, None]:
        grad, index = tiles
        hot = index.T[:, None, :] == jnp.arange(levels)[:, None]
        hot = hot.reshape(mels * levels, tile).astype(grad.dtype)
        return total + jnp.matmul(hot, grad, precision=exact(hot, grad)), None

    total = jax.lax.scan(add, jnp.zeros((mels * levels, width), grad.dtype), (grad, index))[0]
    return total.reshape(table.shape).astype(table.dtype), np.zeros(bins.shape, jax.dtypes.float0)


bag_of_embeddings.defvjp(_bag_forward, _bag_backward)
