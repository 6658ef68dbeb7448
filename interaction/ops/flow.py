"""Flow matching with straight paths (arXiv 2210.02747, 2209.03003)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from interaction.types import Array


def path(target: Array, noise: Array, time: Array) -> Array:
    """The point at `time` on the path from noise (time 0) to the target (time 1).

    Args:
      target: [b, frames, m].
      noise: [b, frames, m], standard normal.
      time: [b] in [0, 1].

    Returns:
      [b, frames, m].
    """
    time = time[:, None, None]
    return (1 - time) * noise + time * target


def integrate(velocity: Callable[[Array, Array], Array], noise: Array, steps: int) -> Array:
    """Euler integration of the flow from time 0 to 1 in `steps` equal steps.

    Args:
      velocity: (point [b, frames, m], time [b]) -> velocity [b, frames, m].
      noise: [b, frames, m], where the path starts.
      steps: Number of evaluations.

    Returns:
      [b, frames, m] at time 1.
    """

    def euler(point: Array, time: Array) -> tuple[Array, None]:
        times = jnp.full((noise.shape[0],), time, noise.dtype)
        return point + velocity(point, times) / steps, None

    return jax.lax.scan(euler, noise, jnp.arange(steps) / steps)[0]
