"""Video in: hMLP stem (Touvron et al., arXiv 2203.09795, §4) on patches of two frames.

Folds of 5, 2 and 4 neighbours on a side tile a patch of 40x40 pixels, then the two frames are
joined; the convolutions do not overlap and are matrix products, and no patch depends on another.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import ModelConfig
from interaction.ops.dense import dense
from interaction.ops.norm import rms_norm
from interaction.types import Array

PATCH = 40  # pixels on a side of a patch
FOLDS = (5, 2, 4)
# Means and deviations of RGB in [0, 1] in the training of CLIP (arXiv 2103.00020)
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def split_patches(frames: Array) -> Array:
    """Cuts pairs of square frames into patches, in row-major order.

    Args:
      frames: float32[b, 2, size, size, 3].

    Returns:
      float32[b, patches, 2, 40, 40, 3].
    """
    b, pair, size, _, channels = frames.shape
    side = size // PATCH
    grid = frames.reshape(b, pair, side, PATCH, side, PATCH, channels)
    return grid.transpose(0, 2, 4, 1, 3, 5, 6).reshape(b, -1, pair, PATCH, PATCH, channels)


def fold(x: Array, stride: int) -> Array:
    """Moves r x r neighbours of float[..., s, s, c] into the channel: [..., s/r, s/r, r*r*c]."""
    *lead, size, _, channels = x.shape
    side = size // stride
    x = x.reshape(*lead, side, stride, side, stride, channels)
    x = jnp.moveaxis(x, -4, -3)
    return x.reshape(*lead, side, side, stride * stride * channels)


class VideoIn(nn.Module):
    """Embeds each patch of a frame and of the one before it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, frames: Array) -> Array:
        """Embeds frames.

        Args:
          frames: float32[b, 2, size, size, 3], RGB in [0, 1]; the frame before first.

        Returns:
          float32[b, patches, d].
        """
        dim, init = self.config.transformer.dim, nn.initializers.lecun_normal()
        x = (split_patches(frames) - PIXEL_MEAN) / PIXEL_STD
        for level, (side, width) in enumerate(zip(FOLDS, self.config.vision_widths, strict=True)):
            x = fold(x, side)
            x = dense(x, self.param(f"fold_{level}", init, (x.shape[-1], width)))
            x = rms_norm(x, self.param(f"norm_{level}", nn.initializers.ones, (width,)))
            x = jax.nn.gelu(x, approximate=False)
        x = x.reshape(*x.shape[:2], -1)  # both frames, the one before first
        x = dense(x, self.param(f"fold_{len(FOLDS)}", init, (x.shape[-1], dim)))
        return rms_norm(x, self.param("norm", nn.initializers.ones, (dim,)))
