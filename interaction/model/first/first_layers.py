"""The layers of the first transformer, in the step and in one pass over a session.

Layers come in groups of `long_every`: sliding-window layers, then a long layer. Groups and the
sliding layers inside them are scans over stacked parameters, or loops over separate ones.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import FirstTransformerConfig
from interaction.distributed.collectives import EXPERTS, local
from interaction.distributed.experts import Experts
from interaction.distributed.sharding import gather_and_cast
from interaction.model.positions import Positions
from interaction.modules.first.block import Block
from interaction.modules.first.layer_attention import (
    AttentionContext,
    RingKeys,
    SequenceKeys,
)
from interaction.modules.memory import LONG, SLIDING, Cache
from interaction.modules.router_stats import BlockAux
from interaction.ops import rope
from interaction.ops.layers import run_stack, unstack
from interaction.types import Array, Params

_FFN = ("gate", "up", "down")  # the experts' weights
_LayerState = tuple[Array, dict[str, Cache]]  # x float[b, t, d] and the ring caches by kind


def run_layers(
    cfg: FirstTransformerConfig,
    backbone: Params,
    bias: Array,
    positions: Positions,
    keys: Mapping[str, SequenceKeys | RingKeys],
    caches: dict[str, Cache],
    *,
    in_place: bool = False,
) -> tuple[Array, dict[str, Cache], BlockAux]:
    """Runs all layers.

    Args:
      cfg: Configuration of the transformer.
      backbone: Parameters, with the layers under SLIDING and LONG, stacked or separate.
      bias: float32[l, e], selection bias of the routers.
      positions: The embedded positions.
      keys: Keys of the layers of each kind.
      caches: Ring caches of each kind; {} where the keys are sequences.
      in_place: Whether stacked layers read the experts' weights inside the stack instead of from
        copies; not for gradients.

    Returns:
      float[b, t, d] of the last layer, the caches with the positions, and the router statistics of
      all layers, stacked in order.
    """
    turn = rope.rope_turn(positions.time, cfg.head_dim, cfg.rope_base)
    window = {SLIDING: cfg.window, LONG: cfg.long_window}
    sliding = cfg.long_every - 1
    stacks: dict[str, tuple] = {}
    if in_place and not isinstance(backbone[LONG], tuple):
        backbone, stacks = _split_off_experts(backbone)

    def layer(
        kind: str, state: _LayerState, params: Params, bias: Array, index: Array
    ) -> tuple[_LayerState, BlockAux]:
        params = gather_and_cast(params, kind, cfg.dtype)
        experts = _stacked_experts(cfg, stacks, kind, index)
        x, caches = state
        context = AttentionContext(keys[kind], caches.get(kind), index, window[kind])
        x, cache, aux = Block(cfg).apply(
            {"params": params}, x, turn, positions.valid, bias, context, experts
        )
        return (x, caches if cache is None else {**caches, kind: cache}), aux

    def sliding_layer(state: tuple, xs: tuple) -> tuple[tuple, BlockAux]:
        return layer(SLIDING, state, *xs)

    def group(state: tuple, xs: tuple) -> tuple[tuple, BlockAux]:
        sliding_params, long_params, bias, index = xs
        places = index * sliding + np.arange(sliding)
        state, below = run_stack(sliding_layer, state, (sliding_params, bias[:sliding], places))
        state, above = layer(LONG, state, long_params, bias[sliding], index)
        return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), below, above)

    groups = cfg.layers // cfg.long_every
    grouped_bias = bias.reshape(groups, cfg.long_every, cfg.experts)
    xs = (backbone[SLIDING], backbone[LONG], grouped_bias, np.arange(groups))
    (x, caches), aux = run_stack(group, (positions.x, caches), xs)
    return x, caches, jax.tree.map(lambda a: a.reshape(cfg.layers, *a.shape[2:]), aux)


def _stacked_experts(
    cfg: FirstTransformerConfig, stacks: dict[str, tuple], kind: str, index: Array
) -> Experts | None:
    """A layer's experts in the stack of all layers; None where they are the layer's parameters."""
    if kind not in stacks:
        return None
    count = local(cfg.experts, *EXPERTS)
    gate, up, down = stacks[kind]
    return Experts(gate, up, down, count, index * count)


def _split_off_experts(backbone: Params) -> tuple[Params, dict[str, tuple]]:
    """Stacked layers without their experts' weights, and these weights as [layers * e, ...]."""
    stacks = {
        kind: tuple(
            backbone[kind][name].reshape(-1, *backbone[kind][name].shape[-2:]) for name in _FFN
        )
        for kind in (SLIDING, LONG)
    }
    rest = {
        kind: {name: leaf for name, leaf in backbone[kind].items() if name not in _FFN}
        for kind in stacks
    }
    return {**backbone, **rest}, stacks


def separate_layers(backbone: Params) -> Params:
    """The backbone with separate layers instead of stacked ones, for a loop in `run_layers`."""
    sliding = tuple(unstack(group) for group in unstack(backbone[SLIDING]))
    return {**backbone, SLIDING: sliding, LONG: unstack(backbone[LONG])}


def init_layers(cfg: FirstTransformerConfig, key: Array) -> Params:
    """Fresh parameters of all layers, float32, stacked.

    Args:
      cfg: Configuration of the transformer.
      key: Typed PRNG key [].
    """
    keys = jax.random.split(key, cfg.layers).reshape(-1, cfg.long_every)
    x, valid = jnp.zeros((1, 1, cfg.dim)), jnp.ones((1, 1), bool)
    first = SequenceKeys(jnp.zeros((1, 1), jnp.uint32), valid)
    context = AttentionContext(first, None, jnp.int32(0), 1)
    turn = rope.rope_turn(jnp.zeros((1, 1), jnp.uint32), cfg.head_dim, cfg.rope_base)

    def init(key: Array) -> Params:
        return Block(cfg).init(key, x, turn, valid, jnp.zeros(cfg.experts), context)["params"]

    return {
        SLIDING: jax.vmap(jax.vmap(init))(keys[:, :-1]),
        LONG: jax.vmap(init)(keys[:, -1]),
    }
