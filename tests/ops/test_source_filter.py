"""Which samples a frame of filters renders, and what a filter does, in closed form.

Pulses are shut off by the lowest gain that a filter has, exp(-18), so that noise alone is heard.
"""

import jax
import numpy as np
import pytest

from interaction.ops import source_filter
from interaction.types import Array

HOP, N_FFT, RATE, FRAMES, ORDER = 200, 512, 16_000, 6, 4
SHUT = -18.0


def render(noise_filters: np.ndarray, chunk: int = FRAMES) -> np.ndarray:
    """PCM of frames with cepstra [frames, ORDER] of the noise's filter, the pulses' shut."""
    cepstra = np.zeros((1, FRAMES, 2, ORDER), np.float32)
    cepstra[0, :, 0, 0] = SHUT
    cepstra[0, :, 1] = noise_filters
    state, parts = source_filter.init_state(1, ORDER, HOP, N_FFT, 150.0), []
    for start in range(0, FRAMES, chunk):
        part = cepstra[:, start : start + chunk]
        state, pcm = synthesise(state, np.full(part.shape[:2], 150.0, np.float32), part)
        parts.append(np.asarray(pcm[0], np.float64))
    return np.concatenate(parts)


@jax.jit
def synthesise(state: source_filter.SourceState, pitch: Array, cepstra: Array) -> tuple:
    return source_filter.synthesise(state, pitch, cepstra, HOP, RATE)


def levels(*values: float) -> np.ndarray:
    filters = np.zeros((FRAMES, ORDER))
    filters[:, 0] = values
    return filters


@pytest.mark.parametrize("chunk", [1, 2, FRAMES])
def test_a_frame_is_reached_at_the_end_of_its_hop(chunk: int) -> None:
    """Flat filters of gain exp(c): between two frames the gain moves linearly, sample by sample.

    Frame i renders samples i * hop to (i + 1) * hop, from the gain of the frame before to its own;
    the stream starts from a filter that is shut.
    """
    plain = render(levels(*[0.0] * FRAMES))
    values = [0.5, -1.0, 2.0, 0.0, -3.0, 1.0]
    found = render(levels(*values), chunk)
    rise = (np.arange(HOP) + 0.5) / HOP
    gain, before, flat, flat_before = [], np.exp(SHUT), [], np.exp(SHUT)
    for value in values:
        gain.append(rise * np.exp(value) + (1 - rise) * before)
        flat.append(rise + (1 - rise) * flat_before)
        before, flat_before = np.exp(value), 1.0
    wanted = plain * np.concatenate(gain) / np.concatenate(flat)
    # Largest difference seen: 2.8e-6 of values up to 17.
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)


def test_a_filter_is_the_exponential_of_its_cepstrum() -> None:
    """Cepstrum a at quefrency 1 is exp(a / z), whose impulse response is a^n / n!; it is causal."""
    a = 0.9
    filters = np.zeros((FRAMES, ORDER))
    plain = render(filters)
    filters[:, 1] = a
    factorials = np.cumprod([1.0, *range(1, 30)])
    response = a ** np.arange(30) / factorials
    wanted = np.convolve(plain, response)[: FRAMES * HOP]
    # The first hop comes out of the filter that is shut. Largest difference seen: 7e-7 of 5.
    np.testing.assert_allclose(render(filters)[HOP:], wanted[HOP:], atol=1e-5, rtol=0)


def test_noise_is_of_unit_power_and_does_not_stand_still() -> None:
    pcm = render(levels(*[0.0] * FRAMES)).reshape(FRAMES, HOP)[1:]
    np.testing.assert_allclose(np.mean(pcm**2), 1.0, atol=0.15)  # five deviations of 1000 samples
    assert abs(np.corrcoef(pcm)[np.triu_indices(5, 1)]).max() < 0.4
