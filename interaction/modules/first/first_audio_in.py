"""Audio in: dMel of user and model as bags of embeddings (arXiv 2407.15835)."""

import flax.linen as nn
import jax

from interaction.config import FirstTransformerConfig, ModelConfig
from interaction.ops import dmel
from interaction.ops.dense import dense
from interaction.ops.norm import rms_norm
from interaction.types import Array


class AudioIn(nn.Module):
    """Embeds the user's audio of a micro-turn and the model's speech of the one before."""

    config: ModelConfig

    @nn.compact
    def __call__(self, user: Array, self_audio: Array | None, self_audio_gain: Array) -> Array:
        """Embeds micro-turns.

        Args:
          user: int32[b, n, frames, m], dMel of the user.
          self_audio: int32[b, n, frames, m], dMel of the model's speech one micro-turn earlier;
            None has the effect of a `self_audio_gain` of 0 everywhere.
          self_audio_gain: float32[b, n], 0 blanks self audio, 1 keeps it.

        Returns:
          float[b, n, audio_positions, d].
        """
        cfg = self.config
        if not isinstance(cfg.transformer, FirstTransformerConfig):
            raise TypeError(f"transformer: got {cfg.transformer!r}, wanted the first one")
        shape = (cfg.audio.mels, cfg.audio.bins, cfg.transformer.frame_dim)

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
