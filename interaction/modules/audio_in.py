"""Audio in: dMel of both sides as bags of embeddings (arXiv 2407.15835), some frames each."""

import flax.linen as nn
import jax

from interaction.config import ModelConfig
from interaction.distributed.products import dense
from interaction.ops import dmel
from interaction.ops.norm import rms_norm
from interaction.types import Array


class AudioIn(nn.Module):
    """Embeds the user's micro-turn together with the model's own previous speech."""

    config: ModelConfig

    @nn.compact
    def __call__(self, user: Array, self_audio: Array | None, self_audio_gain: Array) -> Array:
        """Embeds micro-turns.

        Args:
          user: int32[b, n, frames, m], dMel of the user.
          self_audio: int32[b, n, frames, m], dMel of the model's speech one micro-turn earlier; None is
            as if `self_audio_gain` were 0 everywhere.
          self_audio_gain: float32[b, n], 0 blanks the model's own speech, 1 keeps it.

        Returns:
          [b, n, audio_positions, d].
        """
        cfg = self.config
        shape = (cfg.audio.mels, cfg.audio.bins, cfg.frame_dim)

        def table(name: str) -> Array:
            return self.param(name, lambda key: dmel.init_table(key, *shape))

        bag = dmel.bag_of_embeddings(table("user_table"), user)
        if self_audio is not None:
            self_bag = dmel.bag_of_embeddings(table("self_table"), self_audio)
            bag = bag + self_bag * self_audio_gain[:, :, None, None].astype(bag.dtype)
        b, n = bag.shape[:2]
        patch = bag.reshape(b, n, cfg.audio_positions, -1)
        width = patch.shape[-1]
        scale = self.param("norm", nn.initializers.ones, (width,))
        init = nn.initializers.lecun_normal()
        hidden_dim = 2 * cfg.transformer.dim
        first = self.param("hidden", init, (width, hidden_dim))
        second = self.param("out", init, (hidden_dim, cfg.transformer.dim))
        offset = self.param(
            "position", nn.initializers.normal(0.02), (cfg.audio_positions, cfg.transformer.dim)
        )
        hidden = jax.nn.gelu(dense(rms_norm(patch, scale), first))
        return dense(hidden, second) + offset
