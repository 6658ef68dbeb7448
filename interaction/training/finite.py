"""Where NaN or Inf came up first: found on the device, read with a window's other figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interaction.types import Array

GRADIENTS = "gradients_finite"  # metric of a step, see `finite_leaves`
_DERIVED = ("loss", "grad_norm")  # metrics that follow from parts of the loss and from gradients
_NAMED = 4


class NotFiniteError(RuntimeError):
    """A loss, gradient or parameter is NaN or Inf; the newest checkpoint is from before it."""


def finite_leaves(tree: Any) -> Array:  # noqa: ANN401
    """Whether all entries of a leaf are finite: bool[leaves], in `tree_paths.flatten`'s order."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def first_non_finite(
    values: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[int, dict[str, list[str]]] | None:
    """What came up first in the steps of a window.

    Args:
      values: Metrics of each step, on the host.
      names: Of the gradients that `GRADIENTS` tells of, where that is there.

    Returns:
      Place of the first step with such a figure, and what: arguments of `not_finite`.
    """
    for at, metrics in enumerate(values):
        bad = [name for name, value in metrics.items() if not np.all(np.isfinite(value))]
        parts = [name for name in bad if name not in _DERIVED]
        flags = metrics.get(GRADIENTS, ())
        non_finite = [name for name, good in zip(names, flags, strict=False) if not good]
        if bad or non_finite:
            whole = [name for name in bad if name == "loss"]
            return at, {"metrics": parts or whole, "gradients": non_finite}
    return None


def not_finite(
    step: int,
    metrics: Sequence[str] = (),
    gradients: Sequence[str] = (),
    parameters: Sequence[str] = (),
    state: Sequence[str] = (),
) -> str:
    """The message of a `NotFiniteError`, in the order in which a step computes things."""
    kinds = {
        "": metrics,
        "gradients of ": gradients,
        "by the end of the window parameters ": parameters,
        "in the state ": state,
    }
    found = [
        f"{kind}{', '.join(names[:_NAMED])}"
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for kind, names in kinds.items()
        if names
    ]
    return (
        f"step {step}: not finite: {'; '.join(found)}; the newest checkpoint is from before: "
        "resume with a lower learning rate"
    )
