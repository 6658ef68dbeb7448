"""Speech out: a flow head that generates the mel frames of one micro-turn.

Flow matching on mel, conditioned on the frames before it, follows FELLE (arXiv 2502.11128); the
adaptive norm by flow time follows DiT (arXiv 2212.09748).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.ops import flow
from interaction.ops.dense import dense
from interaction.ops.norm import rms_norm
from interaction.types import Array

_ONE = nn.initializers.ones
_ZERO = nn.initializers.zeros
_DENSE = nn.initializers.lecun_normal()


def time_features(time: Array, width: int) -> Array:
    """Sines and cosines float32[b, width] of flow times float32[b] in [0, 1]."""
    frequency = jnp.exp(jnp.linspace(0.0, jnp.log(200.0), width // 2))
    phase = time[:, None] * frequency
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class SpeechCondition(nn.Module):
    """Computes features of each frame and a first guess of its mel; runs once per micro-turn.

    The guess is close to a regression: the mean of the mel frames that are possible.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Array, tokens: Array, prefix: Array) -> tuple[Array, Array]:
        """Computes the conditions.

        Args:
          hidden: float[b, d], hidden state of the text-out position.
          tokens: int32[b, token_window], last text-out tokens, the newest last.
          prefix: float32[b, prefix_frames, m], standardised log10 mel before this micro-turn.

        Returns:
          Features float[b, speech_frames, feature_dim], and the guess float32[b, speech_frames, m],
          standardised log10 mel.
        """
        cfg, audio = self.config.speech, self.config.audio
        table = self.param("table", nn.initializers.normal(1.0), (self.config.vocab, cfg.token_dim))
        said = jnp.take(table, tokens, axis=0).reshape(tokens.shape[0], -1)
        before = prefix.reshape(prefix.shape[0], -1)
        width = cfg.condition_dim
        tokens_in = self.param("tokens_in", _DENSE, (said.shape[1], width))
        # A cast to one dtype for training and step: tables are float32 only in training.
        x = dense(said.astype(tokens_in.dtype), tokens_in)
        x = x + dense(before, self.param("prefix_in", _DENSE, (before.shape[1], width)))
        x = x + dense(hidden, self.param("hidden_in", _ZERO, (hidden.shape[1], width)))
        x = jax.nn.silu(x + self.param("bias_in", _ZERO, (width,)))
        for layer in range(cfg.condition_layers):
            normed = rms_norm(x, self.param(f"norm_{layer}", _ONE, (width,)))
            up = jax.nn.silu(dense(normed, self.param(f"up_{layer}", _DENSE, (width, width))))
            x = x + dense(up, self.param(f"down_{layer}", _DENSE, (width, width)))
        x = rms_norm(x, self.param("norm", _ONE, (width,)))
        frames = audio.speech_frames
        features = dense(x, self.param("features", _DENSE, (width, frames * cfg.feature_dim)))
        guess = dense(x, self.param("guess", _ZERO, (width, frames * audio.mels)))
        return features.reshape(-1, frames, cfg.feature_dim), guess.reshape(-1, frames, audio.mels)


class FlowNet(nn.Module):
    """Estimates the end of a flow's path; each layer mixes frames, then channels.

    It predicts the data instead of the velocity (arXiv 2511.13720), see `velocity`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, point: Array, time: Array, features: Array, guess: Array) -> Array:
        """Estimates the mel at the path's end.

        Args:
          point: float32[b, speech_frames, m], on the path from noise to mel.
          time: float32[b] in [0, 1].
          features: float[b, speech_frames, feature_dim], from SpeechCondition.
          guess: float32[b, speech_frames, m], from SpeechCondition.

        Returns:
          float32[b, speech_frames, m], standardised log10 mel.
        """
        cfg = self.config.speech
        known = jnp.concatenate([guess, features], axis=-1)
        width = point.shape[-1]
        weight = self.param("in", _DENSE, (width + known.shape[-1], cfg.dim))
        x = dense(point, weight[:width]) + dense(known, weight[width:])  # `known` has no time
        x = x + self.param("position", nn.initializers.normal(0.02), (x.shape[1], cfg.dim))
        clock = jax.nn.silu(dense(time_features(time, 64), self.param("time_in", _DENSE, (64, 64))))
        for layer in range(cfg.layers):
            x = self._layer(x, clock, layer)
        x = rms_norm(x, self.param("norm", _ONE, (cfg.dim,)))
        return guess + dense(x, self.param("out", _ZERO, (cfg.dim, point.shape[-1])))

    def _layer(self, x: Array, clock: Array, layer: int) -> Array:
        frames, dim = x.shape[1:]
        adapt = self.param(f"adapt_{layer}", _ZERO, (clock.shape[-1], 6, dim))
        shift, scale, gate, shift2, scale2, gate2 = jnp.moveaxis(
            dense(clock, adapt.reshape(len(adapt), -1)).reshape(-1, 6, 1, dim), 1, 0
        )
        mix_in = self.param(f"mix_in_{layer}", _DENSE, (frames, 2 * frames))
        mix_out = self.param(f"mix_out_{layer}", _DENSE, (2 * frames, frames))
        normed = rms_norm(x, self.param(f"mix_norm_{layer}", _ONE, (dim,)))
        normed = normed * (1 + scale) + shift
        mixed = dense(jax.nn.gelu(dense(normed.swapaxes(1, 2), mix_in)), mix_out)
        x = x + (1 + gate) * mixed.swapaxes(1, 2)
        normed = rms_norm(x, self.param(f"norm_{layer}", _ONE, (dim,)))
        normed = normed * (1 + scale2) + shift2
        up = self.param(f"up_{layer}", _DENSE, (dim, 3 * dim))
        down = self.param(f"down_{layer}", _DENSE, (3 * dim, dim))
        return x + (1 + gate2) * dense(jax.nn.gelu(dense(normed, up)), down)


def velocity(point: Array, time: Array, estimate: Array) -> Array:
    """Velocity towards an estimate of the path's end.

    Args:
      point: float32[b, frames, m], at `time`.
      time: float32[b] in [0, 1).
      estimate: float32[b, frames, m], estimate of the point at time 1.

    Returns:
      float32[b, frames, m].
    """
    return (estimate - point) / (1 - time)[:, None, None]


def generate_mel(
    config: ModelConfig, params: dict, hidden: Array, tokens: Array, prefix: Array, noise: Array
) -> Array:
    """Generates the mel frames of one micro-turn.

    Args:
      config: Model configuration.
      params: {"condition": ..., "flow": ...} from `gather_and_cast`, since no collective may run
        here.
      hidden: float[b, d], hidden state of the text-out position.
      tokens: int32[b, token_window], last spoken tokens, the newest last.
      prefix: float32[b, prefix_frames, m], log10 mel before this micro-turn.
      noise: float32[b, speech_frames, m], standard normal.

    Returns:
      float32[b, speech_frames, m], log10 mel, at least `speech.mel_floor`.
    """
    cfg = config.speech
    features, guess = SpeechCondition(config).apply(
        {"params": params["condition"]}, hidden, tokens, standardise(prefix, config)
    )

    def move(point: Array, time: Array) -> Array:
        estimate = FlowNet(config).apply({"params": params["flow"]}, point, time, features, guess)
        return velocity(point, time, estimate)

    point = flow.integrate(move, cfg.temperature * noise, cfg.flow_steps)
    return jnp.maximum(point * cfg.mel_std + cfg.mel_mean, cfg.mel_floor)


def standardise(log_mel: Array, config: ModelConfig) -> Array:
    """Standardises log10 mel float32[..., m], which is raised to `speech.mel_floor` first."""
    cfg = config.speech
    return (jnp.maximum(log_mel, cfg.mel_floor) - cfg.mel_mean) / cfg.mel_std
