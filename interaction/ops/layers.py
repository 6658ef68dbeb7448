"""Layers in sequence: a scan over stacked parameters, or a loop over separate ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from interaction.types import Params


def run_stack(body: Callable[[Any, tuple], tuple[Any, Any]], carry: Any, xs: tuple) -> tuple:  # noqa: ANN401
    """Runs `body` layer by layer: `lax.scan` over stacked parameters, a loop over separate ones.

    A scan compiles the layer once for any number of layers, but XLA's CPU backend copies each
    layer's weights out of the stack before it multiplies by them.

    Args:
      body: (carry, a layer's part of `xs`) -> (carry, output).
      carry: Input of the first layer.
      xs: Parameters first, then trees of arrays; all with the layer as leading axis. Parameters are
        a tree of arrays, or a plain tuple of trees from `unstack`.

    Returns:
      The last carry, and the stacked outputs.
    """
    if not isinstance(xs[0], tuple):
        return jax.lax.scan(body, carry, xs)
    one, outputs = jax.jit(body), []  # traced once for all layers; XLA inlines the calls
    for index in range(len(xs[0])):
        carry, output = one(carry, tuple(_layer(x, index) for x in xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _layer(tree: Any, index: int) -> Any:  # noqa: ANN401
    if type(tree) is tuple:
        return tree[index]
    return jax.tree.map(lambda leaf: leaf[index], tree)


def unstack(params: Params) -> tuple[Params, ...]:
    """Trees of single layers, from a tree whose leaves have the layer as leading axis."""
    layers = jax.tree.leaves(params)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(layers))
