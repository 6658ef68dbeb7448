"""The layers of the decoder: one code path for training and for the step.

Groups of layers, and the sliding layers inside a group, are scans over stacked parameters, or loops
over separate ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import TransformerConfig
from interaction.distributed.collectives import SEQUENCE, TENSOR, axis_index, local
from interaction.distributed.sharding import gather_and_cast
from interaction.model.layer_stacks import (
    FIRST_DENSE,
    ExpertStack,
    Kind,
    Stack,
    first_group,
    kinds,
    long_layers,
    split_off_experts,
)
from interaction.model.positions import Positions
from interaction.modules.decoder_attention import Keys
from interaction.modules.decoder_layer import DecoderLayer
from interaction.modules.memory import FIRST, LONG, SLIDING, Cache, Memory, Tails
from interaction.modules.router_stats import BlockAux
from interaction.ops import block_attention, ring_attention
from interaction.ops.layers import run_stack
from interaction.ops.ring_attention import Ring
from interaction.ops.short_convolution import TAPS
from interaction.types import Array, Params


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
    caches: dict[str, Cache]  # {} for complete sessions


# What a layer reads of its own: parameters, selection bias, index among the layers of its kind, and
# tails, None for complete sessions. What it returns beside the state: new tails and statistics.
_Given = tuple[Params, Array, Array, Tails | None]
_Made = tuple[Tails | None, BlockAux]
_Layer = Callable[[str, str, _State, Params, Array, Array, Tails | None], tuple[_State, _Made]]


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
    b, t = positions.valid.shape
    begin = jnp.full(b, axis_index(SEQUENCE) * t, jnp.int32)
    written = begin if memory is None else memory.clock
    stacks: dict[str, ExpertStack] = {}
    if in_place and not isinstance(long_layers(backbone), tuple):
        backbone, stacks = split_off_experts(cfg, backbone)
    layer = _layer(cfg, stacks, positions.valid, written, at_once)

    def run(state: _State, stack: Stack, tails: Tails | None) -> tuple[_State, _Made]:
        def one(state: _State, xs: _Given) -> tuple[_State, _Made]:
            return layer(stack.name, stack.kind, state, *xs)

        places = stack.first + np.arange(len(stack.bias))
        return run_stack(one, state, (stack.params, stack.bias, places, tails))

    def group(state: _State, xs: tuple) -> tuple[_State, tuple]:
        sliding_params, long_params, bias, index, tails_below, tails_above = xs
        stack = Stack(SLIDING, SLIDING, sliding_params, bias[:sliding], index * sliding)
        state, (below, aux) = run(state, stack, tails_below)
        mine = long_params, bias[sliding], index, tails_above
        state, (above, one) = layer(LONG, LONG, state, *mine)
        return state, (below, above, jax.tree.map(_append, aux, one))

    sliding, groups = cfg.long_every - 1, cfg.layers // cfg.long_every
    tails = _TailsByLayer(memory)
    state, stats = _State(positions.x, memory.caches if memory else {}), []
    own = first_group(cfg, backbone, bias)
    for stack in own:
        state, (new, aux) = run(state, stack, tails.take(stack.kind, len(stack.bias)))
        tails.put(stack.kind, new)
        stats.append(aux)
    begin_group = int(bool(own))
    if many := groups - begin_group:
        rest = bias[begin_group * cfg.long_every :].reshape(-1, cfg.long_every, cfg.experts)
        below = _fold(tails.take(SLIDING, many * sliding), many)
        xs = backbone[SLIDING], backbone[LONG], rest, np.arange(begin_group, groups)
        xs += below, tails.take(LONG, many)
        state, (below, above, aux) = run_stack(group, state, xs)
        tails.put(SLIDING, _unfold(below))
        tails.put(LONG, above)
        stats.append(_unfold(aux))
    aux = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stats)
    if memory is None:
        return state.x, None, aux
    count = jnp.sum(positions.valid, axis=1, dtype=jnp.int32)
    clock = _step_back(written + count, state.caches)
    return state.x, Memory(clock, tails.joined(), state.caches), aux


class _TailsByLayer:
    """The tails of a memory, handed out to the layers of each kind in order, and the new ones."""

    def __init__(self, memory: Memory | None) -> None:
        """Of complete sessions, `memory` None, all tails are None."""
        self._tails = memory.tails if memory else {}
        self._new: dict[str, list[Tails]] = {kind: [] for kind in self._tails}
        self._given = dict.fromkeys(self._tails, 0)

    def take(self, kind: str, count: int) -> Tails | None:
        """The tails [count, b, ...] of the next layers of a kind."""
        if kind not in self._tails:
            return None
        first = self._given[kind]
        self._given[kind] += count
        return jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf[:, first : first + count], 1, 0), self._tails[kind]
        )

    def put(self, kind: str, tails: Tails | None) -> None:
        """Adds the new tails [count, b, ...] of layers."""
        if tails is not None:
            self._new[kind].append(tails)

    def joined(self) -> dict[str, Tails]:
        """The new tails [b, l, ...] of all layers."""
        return {
            kind: jax.tree.map(lambda *parts: jnp.moveaxis(jnp.concatenate(parts), 0, 1), *parts)
            for kind, parts in self._new.items()
        }


def _append(a: Array, b: Array) -> Array:
    """[n, ...] and [...] to [n + 1, ...]."""
    return jnp.concatenate([a, b[None]])


def _fold(tree: Any, count: int) -> Any:  # noqa: ANN401
    """Arrays [count * n, ...] to [count, n, ...]."""
    return jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), tree)


def _unfold(tree: Any) -> Any:  # noqa: ANN401
    """Arrays [count, n, ...] to [count * n, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def _layer(
    cfg: TransformerConfig,
    stacks: dict[str, ExpertStack],
    valid: Array,
    written: Array,
    at_once: int,
) -> _Layer:
    """The function that runs one layer, for `at_once` sessions after another; 0: for all."""
    found = kinds(cfg)

    def layer(
        name: str,
        kind: str,
        state: _State,
        params: Params,
        bias: Array,
        index: Array,
        tails: Tails | None,
    ) -> tuple[_State, _Made]:
        params = gather_and_cast(params, name, cfg.dtype)
        experts = stacks[name].of_layer(cfg, index) if name in stacks else None
        module = DecoderLayer(cfg, found[kind].kv_heads, found[kind].extent, name == FIRST_DENSE)

        def sessions(rows: tuple) -> tuple[_State, _Made]:
            state, valid, written, tails = rows
            keys = Keys(found[kind].sight, written, _ring(state.caches, kind), index)
            x, tails, ring, aux = module.apply(
                {"params": params}, state.x, valid, bias, tails, keys, experts
            )
            return _next(state, kind, x, ring), (tails, aux)

        rows = state, valid, written, tails
        return _map_sessions(sessions, rows, at_once) if at_once else sessions(rows)

    if cfg.remat == "nothing":
        return layer
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = products if cfg.remat == "all but products" else None
    return jax.checkpoint(layer, static_argnums=(0, 1), policy=policy)


def _ring(caches: dict[str, Cache], kind: str) -> Ring | None:
    if not caches:
        return None
    first = caches[FIRST] if kind == LONG else (None, None)
    return Ring(*caches[kind], *first)


def _next(state: _State, kind: str, x: Array, ring: Ring | None) -> _State:
    """The state after a layer."""
    if ring is None:
        return _State(x, state.caches)
    caches = {**state.caches, kind: Cache(ring.k, ring.v)}
    if ring.first_k is not None and ring.first_v is not None:
        caches[FIRST] = Cache(ring.first_k, ring.first_v)
    return _State(x, caches)


def _step_back(written: Array, caches: dict[str, Cache]) -> Array:
    """Keeps an index small: the slots stay the same, and it stays far from the session's start."""
    lap = int(np.lcm.reduce([caches[kind].k.shape[2] for kind in (SLIDING, LONG)]))
    lap *= (1 << 29) // lap
    return jnp.where(written >= 1 << 30, written - lap, written)


def _map_sessions(layer: Callable[[tuple], tuple], rows: tuple, at_once: int) -> tuple:
    """Runs `layer` on one group of sessions after another and sums the router statistics."""
    groups = jax.tree.map(lambda a: a.reshape(-1, at_once, *a.shape[1:]), rows)
    state, (tails, aux) = jax.lax.map(jax.checkpoint(layer), groups)
    return _unfold(state), (_unfold(tails), jax.tree.map(lambda a: jnp.sum(a, axis=0), aux))
