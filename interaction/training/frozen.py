"""Freezing: parameters below some paths that a run reads and does not train."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import traverse_util

from interaction.distributed.sharding import cast_params
from interaction.pretrained.tree_paths import flatten
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.types import Array, Params


def freeze(objective: Objective, paths: Sequence[str], dtype: str) -> Objective:
    """An objective whose parameters below some paths are buffers that no step replaces.

    They have no gradient, no moments and no average, and are stored in the dtype that they compute
    in. Buffers below the paths stay as they are.

    Args:
      objective: The task.
      paths: Paths of parameters or buffers ("backbone/long", "router_bias").
      dtype: Dtype in which the model computes.

    Raises:
      ValueError: The task has nothing below a path, or nothing is left to train.
    """
    if not paths:
        return objective
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    params, buffers = (list(flatten(tree)) for tree in abstract)
    frozen = {name for path in paths for name in (*params, *buffers) if is_below(name, path)}
    for path in paths:
        if not any(is_below(name, path) for name in frozen):
            raise ValueError(
                f"train.frozen: got {path!r}, wanted a path of parameters or buffers, such as "
                f"{params[0]!r}; correct it"
            )
    if frozen.issuperset(params):
        raise ValueError(
            f"train.frozen: got {list(paths)}, wanted some parameters to train; leave paths out"
        )

    def init(key: Array) -> tuple[Params, Buffers]:
        flat, rest = map(flatten, objective.init(key))
        still = flatten(cast_params(nest({n: flat[n] for n in frozen & flat.keys()}), dtype))
        return nest({n: flat[n] for n in flat.keys() - frozen}), nest(rest | still)

    def whole(params_left: Params, more: Buffers) -> tuple[Params, Buffers]:
        flat = flatten(params_left) | flatten(more)
        return nest({name: flat[name] for name in params}), nest({n: flat[n] for n in buffers})

    def loss(
        left: Params, more: Buffers, batch: Batch, totals: dict[str, Array], keys: Array
    ) -> tuple[Array, Sums]:
        return objective.loss(*whole(left, more), batch, totals, keys)

    def finish(more: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
        flat = flatten(more)
        metrics, after = objective.finish(nest({name: flat[name] for name in buffers}), sums)
        moved = {name: leaf for name, leaf in flatten(after).items() if name not in frozen}
        return metrics, nest(flat | moved)

    def samples(left: Params, more: Buffers, batch: Batch) -> dict[str, Any]:
        return objective.samples(*whole(left, more), batch) if objective.samples else {}

    return Objective(init, loss, objective.totals, finish, samples if objective.samples else None)


def is_below(name: str, path: str) -> bool:
    """Whether a leaf's path is `path` or below it."""
    return f"{name}/".startswith(f"{path}/")


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """The nested dict of leaves by path; the inverse of `flatten` for dicts."""
    return traverse_util.unflatten_dict(flat, sep="/")
