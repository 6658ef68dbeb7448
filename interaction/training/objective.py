"""`Objective`: what the training loop needs to know about a task."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.types import Array, Params

Batch = dict[str, Array]
Buffers = dict  # nested dict of arrays that a step replaces without the optimizer
Metrics = dict[str, Array]
Sums = dict[str, Any]  # trees of arrays


def count_sessions(batch: Batch) -> dict[str, Array]:
    """Counts the sessions of a batch.

    Args:
      batch: Arrays [b, ...] of any dtype.

    Returns:
      b, under "sessions", as float32[].
    """
    return {"sessions": jnp.float32(len(jax.tree.leaves(batch)[0]))}


def keep_buffers(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    """The default of `Objective.finish`: the sums are the metrics, and buffers stay as they are."""
    return sums, buffers


class Objective(NamedTuple):
    """A task as pure functions; the loop compiles them.

    A batch is split over devices and, with gradient accumulation, over several passes of a device.
    The results of the parts add up to the result of the whole batch, however it is split. A loss is
    therefore divided by `totals`, which are computed before the first part.

    `params` is a dict whose first level names parts of a model ("backbone", "speech", "vocoder"),
    so that trained parts can be merged. `buffers` is {} for a task that has none. Their paths match
    `interaction.distributed.sharding.RULES`.
    """

    init: Callable[[Array], tuple[Params, Buffers]]  # PRNG key [] -> params, buffers
    # (params, buffers, sessions, totals of the batch, a typed PRNG key [b] for each session)
    #   -> these sessions' share of the loss, float32[], and trees of arrays that add up
    loss: Callable[[Params, Buffers, Batch, dict[str, Array], Array], tuple[Array, Sums]]
    # sessions -> counts, float32[] each, that add up to those of the batch
    totals: Callable[[Batch], dict[str, Array]] = count_sessions
    # (buffers, sums over the batch) -> metrics, buffers of the next step
    finish: Callable[[Buffers, Sums], tuple[Metrics, Buffers]] = keep_buffers
    # (params, buffers, batch) -> samples by name: a number, audio float32[samples], an image
    #   uint8[h, w, 3], or a figure of matplotlib
    samples: Callable[[Params, Buffers, Batch], dict[str, Any]] | None = None


def find_objective(name: str, model: ModelConfig) -> Objective:
    """Makes the objective that is named "module:function".

    Args:
      name: Name of a function that takes a model configuration and returns an `Objective`.
      model: Model configuration.

    Raises:
      ValueError: The name has another form, or there is no such module or function.
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
