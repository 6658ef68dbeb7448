"""Text in and out: one normalised embedding table and one head for all text streams."""

import flax.linen as nn
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.collectives import TENSOR, local
from interaction.distributed.products import column_dense
from interaction.ops.norm import rms_norm
from interaction.types import Array, Params


def embed_tokens(params: Params, tokens: Array) -> Array:
    """Embeds int32[...] tokens as float32[..., d], with the parameters of `TextIn`."""
    rows = jnp.take(params["table"], tokens, axis=0)
    return rms_norm(rows.astype(jnp.float32), params["norm"])


class TextIn(nn.Module):
    """Embeds arrived tokens, the last user transcript and the last text-out token.

    The transcript's gain and the text-out position's offset are 0 at first: a released backbone,
    which knows neither, then computes what it computed.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, arrived: Array | None, user_transcript: Array, last: Array
    ) -> tuple[Array | None, Array, Array]:
        """Embeds tokens.

        Args:
          arrived: int32[b, n, text_slots], PAD where empty, or None.
          user_transcript: int32[b, n, audio_positions], of the previous micro-turn.
          last: int32[b, n], the text-out token of the previous micro-turn.

        Returns:
          Text-in positions float32[b, n, text_slots, d] (None without arrivals), the transcript
          float32[b, n, audio_positions, d] that is added to the audio positions, and the text-out
          position float32[b, n, 1, d].
        """
        dim = self.config.transformer.dim
        zeros = nn.initializers.zeros
        params = {
            "table": self.param("table", nn.initializers.normal(0.02), (self.config.vocab, dim)),
            "norm": self.param("norm", nn.initializers.ones, (dim,)),
        }
        gain = self.param("transcript_gain", zeros, (dim,))
        offset = self.param("out_slot", zeros, (dim,))
        text_out = (embed_tokens(params, last) + offset)[:, :, None]
        transcript = embed_tokens(params, user_transcript) * gain
        if arrived is None:
            return None, transcript, text_out
        return embed_tokens(params, arrived), transcript, text_out


class Heads(nn.Module):
    """The text head; the audio positions read the user's transcript with it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, audio: Array, text: Array) -> tuple[Array, Array, Array]:
        """Computes logits from the last layer.

        Args:
          audio: float[b, n, audio_positions, d], hidden states of the audio positions.
          text: float[b, n, d], hidden state of the text-out position.

        Returns:
          Text logits float32[b, n, v], transcript logits float32[b, n, audio_positions, v], and the
          normalised hidden state float[b, n, d] that conditions speech.
        """
        cfg = self.config.decoder
        x = jnp.concatenate([audio, text[:, :, None]], axis=2)
        x = rms_norm(x, self.param("norm", nn.initializers.ones, (cfg.dim,)))
        shape = (cfg.dim, local(self.config.vocab, TENSOR))
        weight = self.param("text", nn.initializers.normal(cfg.dim**-0.5), shape)
        logits = column_dense(x / cfg.logits_divisor, weight, jnp.float32)
        return logits[:, :, -1], logits[:, :, :-1], x[:, :, -1]
