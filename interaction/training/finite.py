"""Finds the first non-finite values (NaN or Inf) of a run.

The device computes flags in each step; the host reads them with the other figures of a window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interaction.types import Array

GRADIENTS = "gradients_finite"  # metric of a step, from `finite_leaves`
_DERIVED = ("loss", "grad_norm")  # metrics computed from parts of the loss, or from gradients
_NAMED = 4  # most names of a kind in a message


class NotFiniteError(RuntimeError):
    """A loss, gradient or parameter is NaN or Inf; the newest checkpoint is older than that."""


def finite_leaves(tree: Any) -> Array:  # noqa: ANN401
    """Whether all entries of each leaf are finite.

    Args:
      tree: Arrays of any shape and floating dtype.

    Returns:
      bool[leaves], in the order of `tree_paths.flatten`.
    """
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def first_non_finite(
    values: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[int, dict[str, list[str]]] | None:
    """Finds the first step of a window with non-finite values.

    Args:
      values: Metrics of each step, on the host.
      names: Names of the gradients, in the order of the metric `GRADIENTS`; that metric may be
        missing.

    Returns:
      Index of the step in the window, and arguments for `not_finite`; None if all is finite.
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
    """The message of a `NotFiniteError`.

    Args:
      step: Step at which the values were found.
      metrics: Names of non-finite metrics.
      gradients: Paths of non-finite gradients.
      parameters: Paths of parameters that are non-finite at the end of the window.
      state: Paths of non-finite arrays of a state.
    """
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
