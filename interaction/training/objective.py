"""What the training loop needs to know about a task, and nothing more."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from interaction.config import ModelConfig
from interaction.types import Array, Params

Batch = dict[str, Array]
Buffers = dict  # nested dict of arrays that the loss updates and the optimizer does not touch
Metrics = dict[str, Array]


class Objective(NamedTuple):
    """A task as pure functions; the loop jits `init` and `loss` itself.

    `params` is a dict whose first level names parts of a model ("trunk", "speech", "vocoder"), so
    that trained parts can be merged. `buffers` is {} for a task that has none.
    """

    init: Callable[[Array], tuple[Params, Buffers]]  # key -> params, buffers
    loss: Callable[[Params, Buffers, Batch, Array], tuple[Array, tuple[Metrics, Buffers]]]
    # (params, buffers, batch) -> name: float | float32[samples] audio | uint8[h, w, 3] | Figure
    samples: Callable[[Params, Buffers, Batch], dict[str, Any]] | None = None


def find_objective(name: str, model: ModelConfig) -> Objective:
    """Calls the factory named "module:function" with the model's config.

    Raises:
      ValueError: the name has another form, or there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (AttributeError, ValueError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and not module.startswith(error.name or ""):
            raise
        raise ValueError(
            f"objective: got {name!r}, wanted 'module:function' that makes an Objective from a "
            f"ModelConfig; check the spelling ({error})"
        ) from error
    return factory(model)
