"""Flow matching against Gaussian targets, whose best estimates and flows are known in closed form.

Noise is N(0, 1) and the target N(m, s^2), each number on its own. On the straight path
x_t = (1 - t) noise + t target, the best estimate of the target is
E[target | x_t] = m + t s^2 (x_t - t m) / ((1 - t)^2 + t^2 s^2), and the flow whose velocity is
(E[target | x_t] - x_t) / (1 - t) takes the noise to x_t = t m + noise sqrt((1 - t)^2 + t^2 s^2), so
at time 1 to m + s noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.modules.speech_out import generate_mel, velocity
from interaction.ops import flow
from interaction.types import Array
from tests.support import random_params

CONFIG = presets.tiny()
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((3, 4, 5)).astype(np.float32)
MEAN = RNG.standard_normal((3, 4, 5)).astype(np.float32)


def test_path_runs_from_noise_to_target() -> None:
    target = jnp.full((3, 1, 2), 8.0)
    got = flow.path(target, jnp.full((3, 1, 2), -4.0), jnp.asarray([0.0, 0.25, 1.0]))
    wanted = np.broadcast_to(np.array([-4.0, -1.0, 8.0])[:, None, None], (3, 1, 2))
    np.testing.assert_array_equal(got, wanted)


def test_velocity_covers_the_rest_of_the_way_in_the_rest_of_the_time() -> None:
    point, estimate = jnp.full((3, 1, 2), 1.0), jnp.full((3, 1, 2), 4.0)
    got = velocity(point, jnp.asarray([0.0, 0.5, 0.75]), estimate)
    np.testing.assert_array_equal(got[:, 0, 0], [3.0, 6.0, 12.0])
    # Along a path it is target - noise at every time.
    for time in (0.0, 0.3, 0.9):
        times = jnp.full(3, time)
        constant = velocity(flow.path(MEAN, NOISE, times), times, jnp.asarray(MEAN))
        np.testing.assert_allclose(constant, MEAN - NOISE, atol=1e-5)  # measured: 2e-6


def _gaussian(spread: float) -> Callable[[Array, Array], Array]:
    """Velocity of the flow to N(MEAN, spread^2)."""

    def move(point: Array, time: Array) -> Array:
        t = time[:, None, None]
        known = t * spread**2 / ((1 - t) ** 2 + t**2 * spread**2)
        return velocity(point, time, MEAN + known * (point - t * MEAN))

    return move


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_point_target_is_hit_in_any_number_of_steps(steps: int) -> None:
    got = flow.integrate(_gaussian(0.0), jnp.asarray(NOISE), steps)
    np.testing.assert_allclose(got, MEAN, atol=1e-5)  # measured: 5e-7


def test_the_integral_lands_on_a_gaussian_target() -> None:
    """Euler's error falls as 1 / steps; with many the flow ends at m + s noise."""
    spread = 0.5
    wanted = MEAN + spread * NOISE
    errors = {
        steps: float(np.abs(flow.integrate(_gaussian(spread), NOISE, steps) - wanted).max())
        for steps in (50, 100, 800)
    }
    assert errors[800] < 5e-3, errors  # measured: 0.0022
    assert 1.8 < errors[50] / errors[100] < 2.2, errors  # measured: 1.99


def test_noise_of_the_target_s_distribution_is_moved_to_it() -> None:
    """The same in distribution: mean 2 and deviation 0.5, from 4,000 numbers of N(0, 1)."""
    noise = np.random.default_rng(1).standard_normal((1, 1, 4_000)).astype(np.float32)

    def move(point: Array, time: Array) -> Array:
        t = time[:, None, None]
        known = 0.25 * t / ((1 - t) ** 2 + 0.25 * t**2)
        return velocity(point, time, 2.0 + known * (point - 2.0 * t))

    got = np.asarray(flow.integrate(move, noise, 400))
    # Four deviations of a mean and of a deviation over 4,000 numbers: 0.5 / 63 and 0.5 / 89.
    assert abs(got.mean() - 2.0) < 0.04
    assert abs(got.std() - 0.5) < 0.03


def test_generated_mel_is_the_estimate_where_it_does_not_change() -> None:
    """With an estimate that is constant, the head's mel does not depend on noise or temperature."""
    params = random_params(CONFIG)["speech"]
    still = {**params["flow"], "out": jnp.zeros_like(params["flow"]["out"])}
    condition = {name: jnp.zeros_like(leaf) for name, leaf in params["condition"].items()}
    params = {"condition": condition, "flow": still}
    frames = (2, CONFIG.audio.speech_frames, CONFIG.audio.mels)
    prefix = jnp.zeros((2, CONFIG.speech.prefix_frames, CONFIG.audio.mels))
    hidden = jnp.ones((2, CONFIG.transformer.dim))
    tokens = jnp.full((2, CONFIG.speech.token_window), 9)
    noise = jnp.asarray(RNG.standard_normal(frames), jnp.float32)
    got = jax.jit(generate_mel, static_argnums=0)(CONFIG, params, hidden, tokens, prefix, noise)
    # The estimate is 0 in units of the standardised mel, which is the mean of speech.
    np.testing.assert_allclose(got, np.full(frames, -2.5), atol=1e-5)  # measured: 5e-7
