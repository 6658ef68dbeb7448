"""Where NaN or Inf came up first, found on the device and without waiting for it each step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interaction.types import Array

GRADIENTS = "gradients_finite"  # metric of a step: bool[leaves], see `finite_leaves`
_DERIVED = ("loss", "grad_norm")  # metrics that other ones explain


class NotFiniteError(RuntimeError):
    """A loss, gradient or parameter is NaN or Inf; the newest checkpoint is from before it."""


def finite_leaves(tree: Any) -> Array:  # noqa: ANN401
    """Whether all of a leaf's numbers are finite: bool[leaves], in `flatten`'s order."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def check_finite(
    step: int, metrics: dict[str, Any], gradients: list[str], damaged: list[str] | None = None
) -> None:
    """Refuses metrics of a step that are not finite.

    Args:
      step: Whose they are.
      metrics: On the host. `GRADIENTS`, where it is there, says which gradient leaves are finite.
      gradients: Their names.
      damaged: Parameters that are not finite by now.

    Raises:
      NotFiniteError: Names the parts of the loss, else the gradients, in which it came up.
    """
    bad = [name for name, value in metrics.items() if not np.all(np.isfinite(value))]
    flags = metrics.get(GRADIENTS, ())
    sick = [name for name, good in zip(gradients, flags, strict=False) if not good]
    if not bad and not sick:
        return
    parts = [name for name in bad if name not in _DERIVED] or [n for n in bad if n == "loss"]
    found = [f"{', '.join(parts)} of the loss not finite"] if parts else []
    if sick:
        found.append(f"gradients not finite: {_some(sick)}")
    elif not parts:
        found.append(f"{', '.join(bad)} not finite")
    if damaged:
        found.append(f"parameters not finite by now: {_some(damaged)}")
    raise NotFiniteError(f"step {step}: {'; '.join(found)}; {ADVICE}")


ADVICE = "the newest checkpoint is from before: resume with a lower learning rate"


def _some(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
