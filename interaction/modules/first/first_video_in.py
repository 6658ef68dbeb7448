"""Video in: hMLP stem (Touvron et al., arXiv 2203.09795, §4) on 40x40 patches.

Strides 5, 4 and 2 tile a patch, so the convolutions do not overlap and are matrix products; no
patch depends on another.
"""

import flax.linen as nn
import jax

from interaction.config import ModelConfig
from interaction.modules.video_in import PATCH, fold
from interaction.ops.dense import dense
from interaction.ops.norm import rms_norm
from interaction.types import Array

STRIDES = (5, 4, 2)


def split_patches(frame: Array) -> Array:
    """Cuts square frames float32[b, size, size, 3] into patches float32[b, patches, 40, 40, 3].

    The patches are in row-major order.
    """
    b, size, _, channels = frame.shape
    side = size // PATCH
    grid = frame.reshape(b, side, PATCH, side, PATCH, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, side * side, PATCH, PATCH, channels)


class VideoIn(nn.Module):
    """Embeds each patch of one frame."""

    config: ModelConfig

    @nn.compact
    def __call__(self, frames: Array) -> Array:
        """Embeds frames.

        Args:
          frames: float32[b, 2, size, size, 3] in [0, 1], RGB; the first of each pair is not read.

        Returns:
          float[b, patches, d].
        """
        dim = self.config.transformer.dim
        x = split_patches(frames[:, 1]) - 0.5
        for level, (stride, width) in enumerate(
            zip(STRIDES, (dim // 4, dim // 4, dim), strict=True)
        ):
            x = fold(x, stride)
            kernel = self.param(
                f"fold_{level}", nn.initializers.lecun_normal(), (x.shape[-1], width)
            )
            x = dense(x, kernel)
            if level < len(STRIDES) - 1:
                scale = self.param(f"norm_{level}", nn.initializers.ones, (width,))
                x = jax.nn.gelu(rms_norm(x, scale))
        position = self.param("position", nn.initializers.normal(0.02), (self.config.patches, dim))
        return x.reshape(x.shape[0], x.shape[1], dim) + position
