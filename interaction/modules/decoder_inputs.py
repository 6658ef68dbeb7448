"""What enters and leaves the Inkling decoder: tokens, dMel frames, patches, text logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import DecoderConfig
from interaction.distributed.collectives import TENSOR, local
from interaction.distributed.products import column_dense, dense
from interaction.modules.video_in import fold
from interaction.ops import dmel
from interaction.ops.norm import rms_norm
from interaction.types import Array

FOLDS = (5, 2, 4)  # neighbours on a side that each level joins, before the two frames are joined
# Means and deviations of RGB in [0, 1] with which CLIP (arXiv 2103.00020) was trained
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class TokenIn(nn.Module):
    """Embeds tokens, and normalises them."""

    vocab: int
    dim: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Embeds int32[...] tokens as float32[..., d]."""
        table = self.param("table", nn.initializers.normal(0.02), (self.vocab, self.dim))
        scale = self.param("norm", nn.initializers.ones, (self.dim,))
        return rms_norm(jnp.take(table, tokens, axis=0), scale)


class DmelIn(nn.Module):
    """Embeds dMel frames as bags of embeddings, normalised."""

    mels: int
    levels: int
    dim: int

    @nn.compact
    def __call__(self, bins: Array) -> Array:
        """Embeds int32[..., mels] levels as float32[..., d]."""
        shape = (self.mels, self.levels, self.dim)
        table = self.param("user_table", lambda key: dmel.init_table(key, *shape))
        scale = self.param("norm", nn.initializers.ones, (self.dim,))
        return rms_norm(dmel.bag_of_embeddings(table, bins), scale)


class VideoIn(nn.Module):
    """hMLP stem (Touvron et al., arXiv 2203.09795, §4) on patches of a frame and the one before."""

    widths: tuple[int, int, int]  # after each of FOLDS
    dim: int

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        """Embeds patches.

        Args:
          patches: float32[n, 2, 40, 40, 3], RGB in [0, 1]; the frame before first.

        Returns:
          float32[n, d].
        """
        x = (patches - PIXEL_MEAN) / PIXEL_STD
        init = nn.initializers.lecun_normal()
        for level, (side, width) in enumerate(zip(FOLDS, self.widths, strict=True)):
            x = fold(x, side)
            x = dense(x, self.param(f"fold_{level}", init, (x.shape[-1], width)))
            x = rms_norm(x, self.param(f"norm_{level}", nn.initializers.ones, (width,)))
            x = jax.nn.gelu(x, approximate=False)
        x = x.reshape(len(x), -1)
        x = dense(x, self.param(f"fold_{len(FOLDS)}", init, (x.shape[-1], self.dim)))
        return rms_norm(x, self.param("norm", nn.initializers.ones, (self.dim,)))


class TextHead(nn.Module):
    """Normalises the last layer and computes text logits."""

    config: DecoderConfig
    vocab: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Computes logits.

        Args:
          x: float[..., d], of the last layer.

        Returns:
          float32[..., v], and the normalised hidden state float[..., d].
        """
        dim = self.config.dim
        hidden = rms_norm(x, self.param("norm", nn.initializers.ones, (dim,)))
        shape = (dim, local(self.vocab, TENSOR))
        weight = self.param("text", nn.initializers.normal(dim**-0.5), shape)
        return column_dense(hidden / self.config.logits_divisor, weight, jnp.float32), hidden
