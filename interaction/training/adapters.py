"""Low-rank adapters of frozen matrices (LoRA, arXiv 2106.09685)."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interaction.ops.dense import exact
from interaction.pretrained.lazy_array import Index, LazyArray
from interaction.pretrained.tree_paths import flatten
from interaction.training.frozen import nest
from interaction.training.objective import Batch, Buffers, Metrics, Objective, Sums
from interaction.types import Array, Params

ROOT = "lora"  # first level of the adapters' paths; below it are the paths of the matrices
_IN, _OUT = "lora_in", "lora_out"
# Matrices with adapters: those of attention, and the shared experts.
_MATRICES = re.compile(r"(^|/)(query|key|value|relative|attention_out|shared_(gate|up|down))$")


def adapt(objective: Objective, rank: int) -> Objective:
    """An objective that also trains W + A B instead of each frozen matrix W of some kinds.

    A is float32[..., d, rank] and random, B is float32[..., rank, f] and zero at first. The sum has
    W's dtype, and is taken anew in each step.

    Args:
      objective: The task, with frozen parameters among its buffers.
      rank: Rank of the adapters; 0: there are none.

    Raises:
      ValueError: No attention and no shared expert is frozen.
    """
    if not rank:
        return objective
    abstract = flatten(jax.eval_shape(objective.init, jax.random.key(0))[1])
    matrices = [name for name in abstract if _MATRICES.search(name)]
    if not matrices:
        raise ValueError(
            f"train.lora_rank: got {rank}, wanted frozen layers; add their paths to train.frozen"
        )

    def init(key: Array) -> tuple[Params, Buffers]:
        own, key = jax.random.split(key)
        params, buffers = objective.init(key)
        made = {}
        for number, name in enumerate(matrices):
            *lead, d, f = abstract[name].shape
            draw = jax.random.normal(jax.random.fold_in(own, number), (*lead, d, rank))
            made[f"{name}/{_IN}"] = draw * d**-0.5
            made[f"{name}/{_OUT}"] = jnp.zeros((*lead, rank, f))
        return {**params, ROOT: nest(made)}, buffers

    def whole(params: Params, buffers: Buffers) -> tuple[Params, Buffers]:
        rest = {name: part for name, part in params.items() if name != ROOT}
        return rest, nest(_merged(flatten(buffers), flatten(params[ROOT])))

    def loss(
        params: Params, buffers: Buffers, batch: Batch, totals: dict[str, Array], keys: Array
    ) -> tuple[Array, Sums]:
        return objective.loss(*whole(params, buffers), batch, totals, keys)

    def samples(params: Params, buffers: Buffers, batch: Batch) -> dict[str, Any]:
        return objective.samples(*whole(params, buffers), batch) if objective.samples else {}

    def finish(buffers: Buffers, sums: Sums) -> tuple[Metrics, Buffers]:
        return objective.finish(buffers, sums)

    return Objective(init, loss, objective.totals, finish, samples if objective.samples else None)


def _merged(flat: Mapping[str, Array], adapters: Mapping[str, Array]) -> dict[str, Array]:
    """The matrices with their adapters; on a mesh, the parts that a device holds."""
    found = dict(flat)
    for name in matrices_of(adapters):
        into, out = adapters[f"{name}/{_IN}"], adapters[f"{name}/{_OUT}"]
        delta = jnp.matmul(into, out, precision=exact(into, out))
        found[name] = (flat[name].astype(jnp.float32) + delta).astype(flat[name].dtype)
    return found


def merge(flat: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The arrays of a run with adapters merged into their matrices, and without adapters.

    Args:
      flat: Lazy arrays by path; adapters' paths begin with `ROOT`.
    """
    adapters = {
        name.removeprefix(f"{ROOT}/"): leaf
        for name, leaf in flat.items()
        if name.startswith(f"{ROOT}/")
    }
    found = {name: leaf for name, leaf in flat.items() if not name.startswith(f"{ROOT}/")}
    for name in matrices_of(adapters):
        found[name] = _sum(found[name], adapters[f"{name}/{_IN}"], adapters[f"{name}/{_OUT}"])
    return found


def matrices_of(adapters: Mapping[str, Any]) -> list[str]:
    """Paths of the matrices that have adapters."""
    return [name.removesuffix(f"/{_IN}") for name in adapters if name.endswith(f"/{_IN}")]


def _sum(matrix: LazyArray, into: LazyArray, out: LazyArray) -> LazyArray:
    rank = slice(0, into.shape[-1])

    def read(index: Index) -> np.ndarray:
        *lead, rows, columns = index
        delta = np.matmul(into[(*lead, rows, rank)], out[(*lead, rank, columns)])
        return (matrix[index].astype(np.float32) + delta).astype(matrix.dtype)

    return LazyArray(matrix.shape, matrix.dtype, matrix.piece, read)
