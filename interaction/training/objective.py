"""What the training loop needs to know about a task, and nothing more."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.types import Array, Params

Batch = dict[str, Array]
Buffers = dict  # nested dict of arrays that a step updates and the optimizer does not touch
Metrics = dict[str, Array]
Sums = dict[str, Any]  # trees of arrays


def count_sessions(batch: Batch) -> dict[str, Array]:
    """The number of sessions in a batch, under "sessions"."""
    return {"sessions": jnp.float32(len(jax.tree.leaves(batch)[0]))}


def keep_buffers(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
    """`Objective.finish` of a task without buffers whose sums are its metrics."""
    return sums, buffers


class Objective(NamedTuple):
    """A task as pure functions; the loop jits them itself.

    A batch is shared out: devices and, with gradient accumulation, turns of one device each see
    some of its sessions. What they return adds up to the whole batch's, whatever the shares are;
    so a loss is divided by `totals`, which are known before the first share is computed.

    `params` is a dict whose first level names parts of a model ("backbone", "speech", "vocoder"), so
    that trained parts can be merged. `buffers` is {} for a task that has none. Both are named as
    `interaction.distributed.sharding.RULES` knows them.
    """

    init: Callable[[Array], tuple[Params, Buffers]]  # key -> params, buffers
    # (params, buffers, sessions, totals of the batch, a typed PRNG key for each session)
    #   -> the sessions' share of the loss, and whatever else adds up
    loss: Callable[[Params, Buffers, Batch, dict[str, Array], Array], tuple[Array, Sums]]
    totals: Callable[[Batch], dict[str, Array]] = count_sessions  # of sessions; they add up
    # (buffers, sums over the batch) -> metrics, buffers of the next step
    finish: Callable[[Buffers, Sums], tuple[Metrics, Buffers]] = keep_buffers
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
