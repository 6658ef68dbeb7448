"""The layers of the decoder: one code path for training and for the step.

Layers come in groups of `long_every`: sliding-window layers, then a long one. Some of the first
group's layers may be dense; then that group has parameters of its own. The other groups, and the
sliding layers inside them, are scans over stacked parameters, or loops over separate ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import TransformerConfig
from interaction.distributed.collectives import EXPERTS, SEQUENCE, TENSOR, axis_index, local
from interaction.distributed.experts import Experts
from interaction.distributed.sharding import gather_and_cast
from interaction.model.positions import Positions
from interaction.modules.decoder_attention import Keys
from interaction.modules.decoder_layer import DecoderLayer
from interaction.modules.memory import FIRST, LONG, SLIDING, Cache, Memory, Tails
from interaction.modules.router_stats import BlockAux
from interaction.ops import block_attention, ring_attention
from interaction.ops.layers import run_stack, unstack
from interaction.ops.ring_attention import Ring
from interaction.ops.sequence_attention import Sight
from interaction.ops.short_convolution import TAPS
from interaction.types import Array, Params

# Parameters of the first group's layers, where some of them are dense.
FIRST_DENSE, FIRST_SLIDING, FIRST_LONG = "first_dense", "first_sliding", "first_long"
_STACKS = {FIRST_SLIDING: 1, FIRST_LONG: 1, SLIDING: 2, LONG: 1}  # axes of layers; with experts
_EXPERTS = ("gate", "up", "down")  # the experts' weights


class Kind(NamedTuple):
    """What the layers of one kind have in common."""

    layers: int
    kv_heads: int
    extent: int  # distance from which the attention's bias is 0
    sight: Sight


def kinds(cfg: TransformerConfig) -> dict[str, Kind]:
    """The kinds of layers."""
    groups = cfg.layers // cfg.long_every
    long = Sight(cfg.long_window, block_attention.FIRST, cfg.log_scaling_from)
    sliding, layers = Sight(cfg.window, 0, 0), groups * (cfg.long_every - 1)
    return {
        SLIDING: Kind(layers, cfg.sliding_kv_heads, cfg.window, sliding),
        LONG: Kind(groups, cfg.kv_heads, cfg.relative_extent, long),
    }


def init_memory(cfg: TransformerConfig, sessions: int, span: int) -> Memory:
    """The memory of sessions before their first position.

    Args:
      cfg: Configuration of the transformer.
      sessions: Number of sessions, b.
      span: Most positions of a session that are written at once.
    """
    found = kinds(cfg)

    def cache(kind: Kind, slots: int) -> Cache:
        shape = sessions, kind.layers, slots, local(kind.kv_heads, TENSOR), cfg.head_dim
        return Cache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))

    def tails(kind: Kind) -> Tails:
        width, shape = (
            local(kind.kv_heads, TENSOR) * cfg.head_dim,
            (sessions, kind.layers, TAPS - 1),
        )
        return Tails(*(jnp.zeros((*shape, size)) for size in (width, width, cfg.dim, cfg.dim)))

    caches = {
        name: cache(kind, ring_attention.capacity(kind.sight.window, span))
        for name, kind in found.items()
    }
    return Memory(
        clock=jnp.zeros(sessions, jnp.int32),
        tails={name: tails(kind) for name, kind in found.items()},
        caches={**caches, FIRST: cache(found[LONG], block_attention.FIRST)},
    )


class _State(NamedTuple):
    """What goes from layer to layer."""

    x: Array  # float[b, t, d]
    tails: dict[str, Tails]  # {} for complete sessions
    caches: dict[str, Cache]  # {} for complete sessions


class _Stack(NamedTuple):
    """Layers of one form: the name of their parameters, their kind, and what they read."""

    name: str
    kind: str
    params: Any  # stacked or separate
    bias: Array  # float32[l, e]
    first: Array | int  # index of the first one among the layers of the kind


def run_decoder(
    cfg: TransformerConfig,
    backbone: Params,
    bias: Array,
    positions: Positions,
    memory: Memory | None,
    *,
    at_once: int = 0,
    in_place: bool = False,
) -> tuple[Array, Memory | None, BlockAux]:
    """Runs all layers on positions of sessions, from their start or after those in the memory.

    Args:
      cfg: Configuration of the transformer.
      backbone: Parameters, with the layers stacked or separate.
      bias: float32[l, e], selection bias of the routers.
      positions: The positions; those that exist come first.
      memory: The positions before these; None: there are none, and no memory is returned.
      at_once: Number of sessions that a layer takes at once, a divisor of b; 0: all. With another
        value than 0 the backward pass computes a group's activations again.
      in_place: Whether stacked layers read the experts' weights inside the stack instead of from
        copies; not for gradients.

    Returns:
      float[b, t, d] of the last layer, the memory with the positions, and the router statistics of
      all layers, stacked in order.
    """
    found, b, t = kinds(cfg), *positions.valid.shape
    begin = jnp.full(b, axis_index(SEQUENCE) * t, jnp.int32)
    written = begin if memory is None else memory.clock
    stacks: dict[str, tuple] = {}
    if in_place and not isinstance(backbone[LONG], tuple):
        backbone, stacks = _split_off_experts(backbone)

    def layer(
        name: str, kind: str, state: _State, params: Params, bias: Array, index: Array
    ) -> tuple[_State, BlockAux]:
        params = gather_and_cast(params, name, cfg.dtype)
        experts = _stacked_experts(cfg, stacks, name, index)
        module = DecoderLayer(cfg, found[kind].kv_heads, found[kind].extent, name == FIRST_DENSE)

        def sessions(rows: tuple) -> tuple[_State, BlockAux]:
            state, valid, written = rows
            tails = None
            if memory is not None:
                tails = jax.tree.map(lambda leaf: leaf[:, index], state.tails[kind])
            keys = Keys(found[kind].sight, written, _ring(state.caches, kind), index)
            x, tails, ring, aux = module.apply(
                {"params": params}, state.x, valid, bias, tails, keys, experts
            )
            return _next(state, kind, index, x, tails, ring), aux

        rows = state, positions.valid, written
        return sessions(rows) if not at_once else _map_sessions(sessions, rows, at_once)

    if cfg.remat != "nothing":
        products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        policy = products if cfg.remat == "all but products" else None
        layer = jax.checkpoint(layer, static_argnums=(0, 1), policy=policy)

    def run(state: _State, stack: _Stack) -> tuple[_State, BlockAux]:
        def one(state: _State, xs: tuple) -> tuple[_State, BlockAux]:
            return layer(stack.name, stack.kind, state, *xs)

        places = stack.first + np.arange(len(stack.bias))
        return run_stack(one, state, (stack.params, stack.bias, places))

    def group(state: _State, xs: tuple) -> tuple[_State, BlockAux]:
        sliding_params, long_params, bias, index = xs
        below = _Stack(SLIDING, SLIDING, sliding_params, bias[:sliding], index * sliding)
        state, aux = run(state, below)
        state, above = layer(LONG, LONG, state, long_params, bias[sliding], index)
        return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), aux, above)

    sliding, groups = cfg.long_every - 1, cfg.layers // cfg.long_every
    state, stats = _State(positions.x, *(memory[1:] if memory else ({}, {}))), []
    own = _first_group(cfg, backbone, bias)
    for stack in own:
        state, aux = run(state, stack)
        stats.append(aux)
    begin_at = int(bool(own))
    if groups > begin_at:
        rest = bias[begin_at * cfg.long_every :].reshape(-1, cfg.long_every, cfg.experts)
        xs = backbone[SLIDING], backbone[LONG], rest, np.arange(begin_at, groups)
        state, aux = run_stack(group, state, xs)
        stats.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), aux))
    aux = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stats)
    if memory is None:
        return state.x, None, aux
    count = jnp.sum(positions.valid, axis=1, dtype=jnp.int32)
    clock = _step_back(written + count, state.caches)
    return state.x, Memory(clock, state.tails, state.caches), aux


def _first_group(cfg: TransformerConfig, backbone: Params, bias: Array) -> list[_Stack]:
    """The stacks of the first group, if it has parameters of its own."""
    dense, sliding = cfg.dense_layers, cfg.long_every - 1
    if not dense:
        return []
    stacks = [_Stack(FIRST_DENSE, SLIDING, backbone[FIRST_DENSE], bias[:dense], 0)]
    if dense < sliding:
        mine = backbone[FIRST_SLIDING], bias[dense:sliding]
        stacks.append(_Stack(FIRST_SLIDING, SLIDING, *mine, dense))
    mine = backbone[FIRST_LONG], bias[sliding : sliding + 1]
    return [*stacks, _Stack(FIRST_LONG, LONG, *mine, 0)]


def _ring(caches: dict[str, Cache], kind: str) -> Ring | None:
    if not caches:
        return None
    first = caches[FIRST] if kind == LONG else (None, None)
    return Ring(*caches[kind], *first)


def _next(
    state: _State, kind: str, index: Array, x: Array, tails: Tails | None, ring: Ring | None
) -> _State:
    """The state after a layer."""
    if ring is None or tails is None:
        return state._replace(x=x)
    put = jax.tree.map(lambda leaf, one: leaf.at[:, index].set(one), state.tails[kind], tails)
    caches = {**state.caches, kind: Cache(ring.k, ring.v)}
    if ring.first_k is not None and ring.first_v is not None:
        caches[FIRST] = Cache(ring.first_k, ring.first_v)
    return _State(x, {**state.tails, kind: put}, caches)


def _step_back(written: Array, caches: dict[str, Cache]) -> Array:
    """Keeps an index small: the slots stay the same, and it stays far from the session's start."""
    lap = int(np.lcm.reduce([caches[kind].k.shape[2] for kind in (SLIDING, LONG)]))
    lap *= (1 << 29) // lap
    return jnp.where(written >= 1 << 30, written - lap, written)


def _stacked_experts(
    cfg: TransformerConfig, stacks: dict[str, tuple], name: str, index: Array
) -> Experts | None:
    """A layer's experts in the stack of all layers; None where they are the layer's parameters."""
    if name not in stacks:
        return None
    gate, up, down, first = stacks[name]
    count = local(cfg.experts, *EXPERTS)
    return Experts(gate, up, down, count, (index - first) * count)


def _split_off_experts(backbone: Params) -> tuple[Params, dict[str, tuple]]:
    """Stacked layers without their experts' weights, and these weights as [layers * e, ...].

    Beside the weights stands the index of the stack's first layer among the layers of its kind.
    """
    names = [name for name in _STACKS if name in backbone]
    before = {
        FIRST_SLIDING: len(next(iter(backbone[FIRST_DENSE].values())))
        if FIRST_DENSE in backbone
        else 0,
        FIRST_LONG: 0,
        LONG: int(FIRST_LONG in backbone),
    }
    before[SLIDING] = before[LONG] * (
        backbone[SLIDING]["gate"].shape[1] if SLIDING in backbone else 0
    )
    stacks = {
        name: (
            *(
                backbone[name][part].reshape(-1, *backbone[name][part].shape[-2:])
                for part in _EXPERTS
            ),
            before[name],
        )
        for name in names
    }
    rest = {
        name: {part: leaf for part, leaf in backbone[name].items() if part not in _EXPERTS}
        for name in names
    }
    return {**backbone, **rest}, stacks


def _map_sessions(layer: Callable[[tuple], tuple], rows: tuple, at_once: int) -> tuple:
    """Runs `layer` on one group of sessions after another and sums the router statistics."""
    groups = jax.tree.map(lambda a: a.reshape(-1, at_once, *a.shape[1:]), rows)
    state, aux = jax.lax.map(jax.checkpoint(layer), groups)
    state = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), state)
    return state, jax.tree.map(lambda a: jnp.sum(a, axis=0), aux)


def separate_layers(backbone: Params) -> Params:
    """The parameters with separate layers instead of stacked ones, for loops in `run_decoder`."""
    apart: dict[str, Any] = {
        name: unstack(backbone[name])
        for name in (FIRST_DENSE, FIRST_SLIDING, FIRST_LONG, LONG)
        if name in backbone
    }
    if SLIDING in backbone:
        apart[SLIDING] = tuple(unstack(group) for group in unstack(backbone[SLIDING]))
    return {**backbone, **apart}


def init_layers(cfg: TransformerConfig, key: Array) -> Params:
    """Fresh parameters of all layers, float32, stacked.

    Args:
      cfg: Configuration of the transformer.
      key: Typed PRNG key [].
    """
    found = kinds(cfg)
    x, valid = jnp.zeros((1, 1, cfg.dim)), jnp.ones((1, 1), bool)

    def stack(name: str, kind: str, keys: Array) -> Params:
        module = DecoderLayer(cfg, found[kind].kv_heads, found[kind].extent, name == FIRST_DENSE)
        keys_of = Keys(found[kind].sight, jnp.zeros(1, jnp.int32), None, 0)

        def init(key: Array) -> Params:
            return module.init(key, x, valid, jnp.zeros(cfg.experts), None, keys_of)["params"]

        many = init
        for _ in range(keys.ndim):
            many = jax.vmap(many)
        return many(keys)

    keys = jax.random.split(key, cfg.layers).reshape(-1, cfg.long_every)
    made, begin, dense = {}, int(cfg.dense_layers > 0), cfg.dense_layers
    if dense:
        made[FIRST_DENSE] = stack(FIRST_DENSE, SLIDING, keys[0, :dense])
        if dense < cfg.long_every - 1:
            made[FIRST_SLIDING] = stack(FIRST_SLIDING, SLIDING, keys[0, dense:-1])
        made[FIRST_LONG] = stack(FIRST_LONG, LONG, keys[0, -1:])
    if len(keys) > begin:
        made[SLIDING] = stack(SLIDING, SLIDING, keys[begin:, :-1])
        made[LONG] = stack(LONG, LONG, keys[begin:, -1])
    return made
