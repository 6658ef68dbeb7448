"""The streaming contract: all streaming parts of the model pass `verify_stream_contract`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


class StreamPart(NamedTuple):
    """A streaming part of the model, with its unit of time (frame, micro-turn).

    `step` takes any number of units at once. The leading axis of the leaves of state, inputs and
    outputs is the session; the second axis of inputs and outputs is the unit.
    """

    init: Callable[[int], Tree]  # sessions -> state
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]  # params, state, inputs -> state, outputs
    params: Tree
    inputs: Tree  # of 3 sessions and 10 units


def _cut(inputs: Tree, start: int, stop: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[:, start:stop], inputs)


def stream(part: StreamPart, params: Tree, inputs: Tree, size: int) -> tuple[Tree, Tree]:
    """Runs `size` units at a time; returns the last state and all outputs."""
    sessions, units = jax.tree.leaves(inputs)[0].shape[:2]
    state, outputs = part.init(sessions), []
    for start in range(0, units, size):
        state, out = part.step(params, state, _cut(inputs, start, start + size))
        outputs.append(out)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs)


def _close(got: Tree, wanted: Tree, tolerance: float, what: str) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(
            a, b, atol=tolerance * scale, rtol=0, err_msg=f"{what} {jax.tree_util.keystr(path)}"
        )


def verify_stream_contract(
    part: StreamPart, tolerance: float, sizes: tuple[int, ...] = (1, 2, 3, 5)
) -> None:
    """Checks one part.

    Chunk sizes give the same outputs, the same final state and the same gradients; the state
    keeps structure, shapes and dtypes; rows do not depend on their order.

    Args:
      part: The part to check.
      tolerance: Most that a difference may be relative to the largest magnitude; callers give the
        measured value in a comment.
      sizes: Numbers of units at a time, each compared with all units at once.
    """
    part = part._replace(step=jax.jit(part.step))
    units = jax.tree.leaves(part.inputs)[0].shape[1]
    wanted_state, wanted = stream(part, part.params, part.inputs, units)
    fresh = part.init(jax.tree.leaves(part.inputs)[0].shape[0])
    kinds = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(fresh)]
    assert kinds == [
        (leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(wanted_state)
    ], "a step changes the state's shapes, dtypes or weak types"
    assert jax.tree.structure(fresh) == jax.tree.structure(wanted_state)
    for size in sizes:
        state, outputs = stream(part, part.params, part.inputs, size)
        _close(outputs, wanted, tolerance, f"outputs, {size} at a time,")
        _close(state, wanted_state, tolerance, f"state, {size} at a time,")
    order = np.array([2, 0, 1])
    turned = jax.tree.map(lambda leaf: leaf[order], part.inputs)
    _, outputs = stream(part, part.params, turned, units)
    for got, kept in zip(jax.tree.leaves(outputs), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(got, kept[order], err_msg="rows depend on their order")

    def energy(params: Tree, size: int) -> jax.Array:
        _, outputs = stream(part, params, _cut(part.inputs, 0, 4), size)
        floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.mean(jnp.square(x)) for x in floats)

    if jax.tree.leaves(part.params):
        gradient = jax.jit(jax.grad(energy), static_argnums=1)
        _close(gradient(part.params, 2), gradient(part.params, 4), 10 * tolerance, "gradients")
