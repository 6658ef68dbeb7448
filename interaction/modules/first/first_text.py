"""Text in and out: one embedding table for all text streams, the text and transcript heads."""

import flax.linen as nn
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.collectives import TENSOR, local
from interaction.distributed.products import column_dense
from interaction.ops.norm import rms_norm
from interaction.types import Array, Params


def embed_tokens(params: Params, tokens: Array, slot: Array) -> Array:
    """Embeds int32[b, m] tokens in text slots int32[b, m] as float32[b, m, d]."""
    return jnp.take(params["table"], tokens, axis=0) + jnp.take(params["slot"], slot, axis=0)


class TextIn(nn.Module):
    """Embeds arrived tokens, the last user transcript and the last text-out token."""

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
          Text-in positions float[b, n, text_slots, d] (None without arrivals), the transcript
          float[b, n, audio_positions, d] that is added to the audio positions, and the text-out
          position float[b, n, 1, d].
        """
        cfg = self.config
        dim = cfg.transformer.dim
        init = nn.initializers.normal(dim**-0.5)
        table = self.param("table", init, (cfg.vocab, dim))
        slot = self.param("slot", nn.initializers.normal(0.02), (cfg.text_slots, dim))
        out_slot = self.param("out_slot", nn.initializers.normal(0.02), (dim,))
        text_out = (jnp.take(table, last, axis=0) + out_slot)[:, :, None]
        transcript = jnp.take(table, user_transcript, axis=0)
        if arrived is None:
            return None, transcript, text_out
        return jnp.take(table, arrived, axis=0) + slot, transcript, text_out


class Heads(nn.Module):
    """The text head and the transcript head."""

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
        cfg = self.config
        dim = cfg.transformer.dim
        init = nn.initializers.normal(dim**-0.5)
        scale = self.param("norm", nn.initializers.ones, (dim,))
        text = rms_norm(text, scale)
        audio = rms_norm(audio, scale)
        shape = (dim, local(cfg.vocab, TENSOR))
        text_logits = column_dense(text, self.param("text", init, shape), jnp.float32)
        transcript_logits = column_dense(audio, self.param("transcript", init, shape), jnp.float32)
        return text_logits, transcript_logits, text
