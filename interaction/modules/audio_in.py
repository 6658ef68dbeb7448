"""Audio in: dMel of user and model as bags of embeddings (arXiv 2407.15835)."""

import flax.linen as nn

from interaction.config import ModelConfig
from interaction.ops import dmel
from interaction.ops.norm import rms_norm
from interaction.types import Array


class AudioIn(nn.Module):
    """Embeds the user's audio of a micro-turn and the model's speech of the one before."""

    config: ModelConfig

    @nn.compact
    def __call__(self, user: Array, self_audio: Array | None, self_audio_gain: Array) -> Array:
        """Embeds micro-turns; a position is one bag of all levels of its frames.

        Args:
          user: int32[b, n, frames, m], dMel of the user.
          self_audio: int32[b, n, frames, m], dMel of the model's speech one micro-turn earlier;
            None has the effect of a `self_audio_gain` of 0 everywhere.
          self_audio_gain: float32[b, n], 0 blanks self audio, 1 keeps it.

        Returns:
          float32[b, n, audio_positions, d].
        """
        cfg = self.config
        dim, positions = cfg.transformer.dim, cfg.audio_positions
        channels = cfg.audio.user_frames // positions * cfg.audio.mels
        shape = channels, cfg.audio.bins, dim

        def bag(table: Array, bins: Array) -> Array:
            return dmel.bag_of_embeddings(table, bins.reshape(*bins.shape[:2], positions, -1))

        table = self.param("user_table", lambda key: dmel.init_table(key, *shape))
        own = self.param("self_table", nn.initializers.zeros, shape)
        x = bag(table, user)
        if self_audio is not None:
            x = x + bag(own, self_audio) * self_audio_gain[:, :, None, None]
        return rms_norm(x, self.param("norm", nn.initializers.ones, (dim,)))
