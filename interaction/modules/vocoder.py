"""Causal streaming vocoder: a convolutional network controls pulses, noise and their filters."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import AudioConfig, VocoderConfig
from interaction.ops import causal, source_filter
from interaction.ops.dense import dense
from interaction.ops.layers import run_stack, unstack
from interaction.ops.mel import mel_filterbank
from interaction.types import Array, Params

_LAYERED = ("conv", "norm", "up", "up_bias", "down")  # parameters with a leading layer axis
_EXPANSION = 2  # hidden width of a block, as a multiple of dim
_INPUT_FRAMES = 3  # mel frames that the input layer reads
_MEL_FLOOR, _MEL_MEAN, _MEL_STD = -5.0, -2.0, 1.2  # log10 magnitude
_RANGE = 0.2  # scale of the network's cepstra, whose sum is the exponent of a gain
# Level (with that of the mean mel) and tilt of fresh filters, natural logarithm: pulses, strong at
# low frequencies, then noise, strong at high ones. Noise as loud as the pulses would mask them at
# first, and training would never recover them.
_START = ((_MEL_MEAN * np.log(10.0) + 0.2, 0.7), (_MEL_MEAN * np.log(10.0) - 1.5, -1.5))
_REST_PITCH = 170.0  # Hz, before the first frame


class VocoderState(NamedTuple):
    """State of streams between chunks."""

    mel: Array  # float32[b, 2, mels], the last frames, standardised log10 mel
    blocks: Array  # float32[b, l, kernel - 1, dim], the last input frames of each convolution
    source: source_filter.SourceState


class Controls(NamedTuple):
    """The network's controls of each frame."""

    pitch: Array  # float32[b, frames, pitch_bins], logits of the pitch classes
    cepstra: Array  # float32[b, frames, 2, order], of the filters of pulses and of noise


def init_vocoder_state(batch: int, cfg: VocoderConfig, audio: AudioConfig) -> VocoderState:
    """State of `batch` fresh streams."""
    hop = audio.speech.hop
    return VocoderState(
        jnp.zeros((batch, _INPUT_FRAMES - 1, audio.mels)),
        jnp.zeros((batch, cfg.layers, cfg.kernel - 1, cfg.dim)),
        source_filter.init_state(batch, cfg.order, hop, cfg.n_fft, _REST_PITCH),
    )


def _norm(x: Array, scale: Array) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


@functools.cache
def envelope_cepstra(order: int, audio: AudioConfig) -> np.ndarray:
    """Linear map from standardised mel to the causal cepstrum of its smoothed envelope.

    The network corrects this cepstrum. The quefrencies of the pitch are faded out.

    Args:
      order: Cepstral coefficients.
      audio: Front end of the mel.

    Returns:
      float32[mels, order], read-only.
    """
    bank = mel_filterbank(audio.speech, audio)
    hertz = np.arange(bank.shape[0]) * audio.sample_rate / audio.speech.n_fft
    centres = hertz @ bank / bank.sum(axis=0)
    spread = np.stack([np.interp(hertz, centres, row) for row in np.eye(audio.mels)])
    cepstra = np.fft.irfft(spread * (_MEL_STD * np.log(10.0)))[:, :order]
    cepstra[:, 1:] *= 2.0
    ramp = np.clip((np.arange(order) - 24) / 40.0, 0.0, 1.0)
    cepstra = (cepstra * (0.5 + 0.5 * np.cos(np.pi * ramp))).astype(np.float32)
    cepstra.setflags(write=False)
    return cepstra


def vocoder_controls(
    params: Params, state: VocoderState, mel: Array, audio: AudioConfig
) -> tuple[VocoderState, Controls]:
    """Runs the network: pitch logits and cepstra of each frame; `state.source` is unchanged.

    Args:
      params: Parameters of `Vocoder`.
      state: See `init_vocoder_state`.
      mel: float32[b, frames, mels], log10 magnitude.
      audio: Front end of the mel.

    Returns:
      The state with the new past of the convolutions, and the controls.
    """
    mel = (jnp.maximum(mel, _MEL_FLOOR) - _MEL_MEAN) / _MEL_STD
    mel_past, seen = causal.context(state.mel, mel)
    x = dense(seen, params["input"]) + params["input_bias"]

    layers = params.get("layers") or {name: params[name] for name in _LAYERED}

    @jax.checkpoint
    def block(x: Array, layer: tuple[Params, Array]) -> tuple[Array, Array]:
        weights, past = layer
        past, y = causal.depthwise(past, x, weights["conv"])
        y = _norm(y, weights["norm"])
        y = jax.nn.gelu(dense(y, weights["up"]) + weights["up_bias"])
        return x + dense(y, weights["down"]), past

    x, past = run_stack(block, x, (layers, jnp.moveaxis(state.blocks, 1, 0)))
    x = _norm(x, params["out_norm"])
    pitch = dense(x, params["pitch"]) + params["pitch_bias"]
    cepstra = dense(x, params["filter"]) + params["filter_bias"]
    cepstra = cepstra.reshape(*cepstra.shape[:2], 2, -1)
    order = cepstra.shape[-1]
    cepstra = _RANGE * cepstra / (1.0 + jnp.arange(order)) ** 0.75
    cepstra = cepstra + dense(mel, jnp.asarray(envelope_cepstra(order, audio)))[:, :, None]
    cepstra = cepstra.at[..., :2].add(jnp.array(_START))
    state = state._replace(mel=mel_past, blocks=jnp.moveaxis(past, 0, 1))
    return state, Controls(pitch, cepstra)


def separate_layers(params: Params) -> Params:
    """The parameters with separate layers instead of stacked ones, see `run_stack`."""
    rest = {name: leaf for name, leaf in params.items() if name not in _LAYERED}
    return {**rest, "layers": unstack({name: params[name] for name in _LAYERED})}


def pitch_grid(cfg: VocoderConfig) -> Array:
    """Pitch of each class, float32[pitch_bins] in Hz."""
    return jnp.geomspace(cfg.pitch_low, cfg.pitch_high, cfg.pitch_bins)


def decode_pitch(logits: Array, cfg: VocoderConfig) -> Array:
    """Pitch from logits: the mean of log pitch over the best class and two on either side of it.

    Args:
      logits: float32[..., pitch_bins].
      cfg: Configuration of the vocoder.

    Returns:
      float32[...] in Hz.
    """
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    near = jnp.abs(jnp.arange(cfg.pitch_bins) - best) <= 2
    weights = jax.nn.softmax(jnp.where(near, logits, -jnp.inf), axis=-1)
    return jnp.exp(jnp.sum(weights * jnp.log(pitch_grid(cfg)), axis=-1))


def vocoder_step(
    params: Params, state: VocoderState, mel: Array, cfg: VocoderConfig, audio: AudioConfig
) -> tuple[VocoderState, Array]:
    """PCM of the next mel frames; sample s is sample s - delay_frames * hop of the mel's signal.

    Args:
      params: Parameters of `Vocoder`.
      state: See `init_vocoder_state`.
      mel: float32[b, frames, mels], log10 magnitude, hop `speech.hop`.
      cfg: Configuration of the vocoder.
      audio: Front end of the mel.

    Returns:
      The new state, and PCM float32[b, frames * speech.hop].
    """
    state, controls = vocoder_controls(params, state, mel, audio)
    pitch = decode_pitch(controls.pitch, cfg)
    source, pcm = source_filter.synthesise(
        state.source, pitch, controls.cepstra, audio.speech.hop, audio.sample_rate
    )
    return state._replace(source=source), pcm


def vocoder_full(params: Params, mel: Array, cfg: VocoderConfig, audio: AudioConfig) -> Array:
    """PCM of complete clips: `vocoder_step` from a fresh state.

    Args:
      params: Parameters of `Vocoder`.
      mel: float32[b, frames, mels], log10 magnitude, hop `speech.hop`.
      cfg: Configuration of the vocoder.
      audio: Front end of the mel.

    Returns:
      PCM float32[b, frames * speech.hop].
    """
    state = init_vocoder_state(mel.shape[0], cfg, audio)
    return vocoder_step(params, state, mel, cfg, audio)[1]


class Vocoder(nn.Module):
    """Declares the vocoder's parameters; `__call__` is `vocoder_full`."""

    cfg: VocoderConfig
    audio: AudioConfig

    @nn.compact
    def __call__(self, mel: Array) -> Array:
        """Maps float32[b, frames, mels] log10 magnitude to float32[b, frames * hop] PCM."""
        return vocoder_full(self._params(), mel, self.cfg, self.audio)

    def _params(self) -> Params:
        cfg, width = self.cfg, _EXPANSION * self.cfg.dim
        zeros, ones, normal = nn.initializers.zeros, nn.initializers.ones, nn.initializers.normal

        seen = _INPUT_FRAMES * self.audio.mels
        tree = {
            "input": (normal(seen**-0.5), (seen, cfg.dim)),
            "input_bias": (zeros, (cfg.dim,)),
            "conv": (normal(cfg.kernel**-0.5), (cfg.layers, cfg.kernel, cfg.dim)),
            "norm": (ones, (cfg.layers, cfg.dim)),
            "up": (normal(cfg.dim**-0.5), (cfg.layers, cfg.dim, width)),
            "up_bias": (zeros, (cfg.layers, width)),
            "down": (normal((cfg.layers * width) ** -0.5), (cfg.layers, width, cfg.dim)),
            "out_norm": (ones, (cfg.dim,)),
            "pitch": (normal(cfg.dim**-0.5), (cfg.dim, cfg.pitch_bins)),
            "pitch_bias": (zeros, (cfg.pitch_bins,)),
            "filter": (normal(0.02), (cfg.dim, 2 * cfg.order)),
            "filter_bias": (zeros, (2 * cfg.order,)),
        }
        return {name: self.param(name, *how) for name, how in tree.items()}
