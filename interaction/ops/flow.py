"""Flow matching with straight paths (arXiv 2210.02747, 2209.03003)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from interaction.types import Array


def path(target: Array, noise: Array, time: Array) -> Array:
    """The point at `time` on the path from noise (time 0) to the target (time 1).

    Args:
      target: float32[b, frames, m].
      noise: float32[b, frames, m], standard normal.
      time: float32[b] in [0, 1].

    Returns:
      float32[b, frames, m].
    """
    time = time[:, None, None]
    return (1 - time) * noise + time * target


def integrate(velocity: Callable[[Array, Array], Array], noise: Array, steps: int) -> Array:
    """Euler integration of the flow from time 0 to 1 in `steps` equal steps.

    Args:
      velocity: (point float32[b, frames, m], time float32[b]) -> float32[b, frames, m].
      noise: float32[b, frames, m], the start of the path.
      steps: Number of evaluations.

    Returns:
      float32[b, frames, m], the point at time 1.
    """

    def euler(point: Array, time: Array) -> tuple[Array, None]:
        times = jnp.full((noise.shape[0],), time, noise.dtype)
        return point + velocity(point, times) / steps, None

    return jax.lax.scan(euler, noise, jnp.arange(steps) / steps)[0]
