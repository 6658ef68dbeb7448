"""Pulse and noise sources through minimum-phase filters that change from frame to frame.

The classical source-filter model of a voice, with filters given by causal cepstra as in the neural
homomorphic vocoder (Liu, Chen and Yu, Interspeech 2020). All of it streams: the phase of the pitch
is an integer that wraps, so its sum over frames is exact for every chunking.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.ops import causal
from interaction.types import Array

_PHASE_BITS = 20  # bits after the point of a frame's phase advance, in cycles
_NOISE_FRAMES = 128  # frames after which the noise repeats
_LOG_RANGE = (-18.0, 6.0)  # range of a filter's magnitude, natural logarithm


class SourceState(NamedTuple):
    """State of the sources and filters between chunks."""

    pitch: Array  # float32[b], Hz, at the end of the last frame
    phase: Array  # uint32[b], cycles times 2**32
    clock: Array  # int32[b], number of frames so far, modulo the period of the noise
    cepstra: Array  # float32[b, 2, order], of the last frame
    tail: Array  # float32[b, n_fft - hop], PCM of the filters' responses to past frames


def init_state(batch: int, order: int, hop: int, n_fft: int, pitch: float) -> SourceState:
    """State of fresh streams: silent filters.

    Args:
      batch: Number of streams.
      order: Cepstral coefficients of a filter.
      hop: Samples of a frame.
      n_fft: Samples of a filter's response.
      pitch: Pitch in Hz.
    """
    silent = jnp.zeros((batch, 2, order)).at[..., 0].set(_LOG_RANGE[0])
    return SourceState(
        jnp.full((batch,), pitch, jnp.float32),
        jnp.zeros((batch,), jnp.uint32),
        jnp.zeros((batch,), jnp.int32),
        silent,
        jnp.zeros((batch, n_fft - hop)),
    )


@functools.cache
def _noise(hop: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((_NOISE_FRAMES, hop)).astype(np.float32)
    noise.setflags(write=False)
    return noise


def _pulses(state: SourceState, pitch: Array, hop: int, rate: int) -> tuple[Array, Array]:
    """Band-limited pulse train of unit power [b, n, hop], and the phase uint32[b] after it."""
    before = jnp.concatenate([state.pitch[:, None], pitch[:, :-1]], axis=1)
    advance = (before + pitch) * (0.5 * hop / rate)  # cycles of each frame
    advance = jnp.round(advance * 2.0**_PHASE_BITS).astype(jnp.uint32) << (32 - _PHASE_BITS)
    ends = state.phase[:, None] + jnp.cumsum(advance, axis=1, dtype=jnp.uint32)
    starts = (ends - advance).astype(jnp.float32) * 2.0**-32
    t = (jnp.arange(hop, dtype=jnp.float32) + 1.0) / hop
    before, pitch = before[..., None], pitch[..., None]
    hertz = before + (pitch - before) * t
    cycles = starts[..., None] + (before + 0.5 * (pitch - before) * t) * t * (hop / rate)
    harmonics = jnp.floor(0.48 * rate / hertz)
    angle = jnp.pi * (cycles - jnp.round(cycles))  # half the phase, in [-pi/2, pi/2] rad
    safe = jnp.where(jnp.abs(angle) < 1e-4, 1e-4, angle)
    comb = jnp.sin((2.0 * harmonics + 1.0) * safe) / jnp.sin(safe)
    return (comb - 1.0) / jnp.sqrt(2.0 * harmonics), ends[:, -1]


def synthesise(
    state: SourceState, pitch: Array, cepstra: Array, hop: int, rate: int
) -> tuple[SourceState, Array]:
    """PCM of the next frames.

    Within a frame the pitch changes linearly, and the filters cross-fade linearly.

    Args:
      state: See `init_state`; the length of its tail determines n_fft.
      pitch: float32[b, frames], Hz, > 0, at the end of each frame.
      cepstra: float32[b, frames, 2, order], causal cepstra (natural logarithm) of the filters
        of the pulses and of the noise, at the end of each frame.
      hop: Samples of a frame.
      rate: Sampling rate in Hz.

    Returns:
      The new state, and PCM float32[b, frames * hop].
    """
    frames, n_fft = pitch.shape[1], state.tail.shape[1] + hop
    pulses, phase = _pulses(state, pitch, hop, rate)
    ticks = (state.clock[:, None] + jnp.arange(frames)) % _NOISE_FRAMES
    sources = jnp.stack([pulses, jnp.asarray(_noise(hop))[ticks]], axis=2)  # [b, n, 2, hop]
    rise = (jnp.arange(hop, dtype=jnp.float32) + 0.5) / hop
    into = jnp.fft.rfft(sources * rise, n=n_fft)
    out_of = jnp.fft.rfft(sources * (1.0 - rise), n=n_fft)
    cepstra = jnp.concatenate([state.cepstra[:, None], cepstra], axis=1)
    log = jnp.fft.rfft(cepstra, n=n_fft)
    gain = jnp.exp(jnp.clip(log.real, *_LOG_RANGE))
    filters = jax.lax.complex(gain * jnp.cos(log.imag), gain * jnp.sin(log.imag))
    spectrum = jnp.sum(into * filters[:, 1:] + out_of * filters[:, :-1], axis=2)
    tail, pcm = causal.overlap_add(state.tail, jnp.fft.irfft(spectrum, n=n_fft), hop)
    clock = (state.clock + frames) % _NOISE_FRAMES
    return SourceState(pitch[:, -1], phase, clock, cepstra[:, -1], tail), pcm
