"""The layers of the Inkling decoder: one code path for training and for the step.

Layers come in groups of `long_every`: sliding-window layers, then a long one. Some of the first
group's layers may be dense, so that group has parameters of its own. The other groups, and the
sliding layers inside them, are scans over stacked parameters, or loops over separate ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import DecoderConfig
from interaction.distributed.collectives import TENSOR, local
from interaction.distributed.sharding import gather_and_cast
from interaction.modules.block import BlockAux
from interaction.modules.decoder_attention import Keys
from interaction.modules.decoder_layer import DecoderLayer, Tails
from interaction.ops import block_attention, ring_attention
from interaction.ops.layers import run_stack, unstack
from interaction.ops.ring_attention import Ring
from interaction.ops.sequence_attention import Sight
from interaction.ops.short_convolution import TAPS
from interaction.types import Array, Params

SLIDING, LONG = "sliding", "long"
# Parameters of the first group's layers, where some of them are dense.
FIRST_DENSE, FIRST_SLIDING, FIRST_LONG = "first_dense", "first_sliding", "first_long"


class Memory(NamedTuple):
    """What the decoder keeps of a session's earlier positions."""

    written: Array  # int32[b], positions so far; steps back by `_LAP` slots of all rings
    rings: dict[str, Ring]  # by kind of layer
    tails: dict[str, Tails]  # by kind of layer; [b, l, TAPS - 1, ...]


class Kind(NamedTuple):
    """What the layers of one kind have in common."""

    layers: int
    kv_heads: int
    extent: int
    sight: Sight


def kinds(cfg: DecoderConfig) -> dict[str, Kind]:
    """The kinds of layers."""
    groups = cfg.layers // cfg.long_every
    sliding, long = Sight(cfg.window, 0, 0), Sight(cfg.long_window, block_attention.FIRST, 0)
    long = long._replace(sharpen_from=cfg.log_scaling_from)
    return {
        SLIDING: Kind(groups * (cfg.long_every - 1), cfg.sliding_kv_heads, cfg.window, sliding),
        LONG: Kind(groups, cfg.kv_heads, cfg.relative_extent, long),
    }


def init_tails(cfg: DecoderConfig, sessions: int, kind: Kind, layers: int) -> Tails:
    """The tails of sessions before their first position: zeros."""
    width = local(kind.kv_heads, TENSOR) * cfg.head_dim

    def zeros(width: int) -> Array:
        return jnp.zeros((sessions, layers, TAPS - 1, width), jnp.float32)

    return Tails(zeros(width), zeros(width), zeros(cfg.dim), zeros(cfg.dim))


def init_memory(cfg: DecoderConfig, sessions: int, span: int) -> Memory:
    """The memory of sessions before their first position.

    Args:
      cfg: Configuration of the decoder.
      sessions: Number of sessions, b.
      span: Most positions of a session that are written at once.
    """

    def ring(name: str, kind: Kind) -> Ring:
        heads = local(kind.kv_heads, TENSOR), cfg.head_dim
        slots = ring_attention.capacity(kind.sight.window, span)

        def zeros(slots: int) -> Array:  # anew each time, so that all can be donated
            return jnp.zeros((sessions, kind.layers, slots, *heads), cfg.dtype)

        first = block_attention.FIRST
        kept = (zeros(first), zeros(first)) if name == LONG else (None, None)
        return Ring(zeros(slots), zeros(slots), *kept)

    found = kinds(cfg)
    return Memory(
        written=jnp.zeros(sessions, jnp.int32),
        rings={name: ring(name, kind) for name, kind in found.items()},
        tails={name: init_tails(cfg, sessions, kind, kind.layers) for name, kind in found.items()},
    )


class _State(NamedTuple):
    """What goes from layer to layer."""

    x: Array  # float[b, t, d]
    rings: dict[str, Ring]  # {} for complete sessions
    tails: dict[str, Tails]  # {} for complete sessions


class _Stack(NamedTuple):
    """Layers of one form: the name of their parameters, their kind, and what they read."""

    name: str
    kind: str
    params: Any  # stacked or separate
    bias: Array  # float32[l, e]
    first: Array | int  # index of the first one among the layers of the kind


_Layer = Callable[[str, str, _State, Params, Array, Array], tuple[_State, BlockAux]]


def run_decoder(
    cfg: DecoderConfig,
    backbone: Params,
    bias: Array,
    x: Array,
    valid: Array,
    memory: Memory | None,
) -> tuple[Array, Memory | None, BlockAux]:
    """Runs all layers on positions of sessions, from their start or after those in the memory.

    Args:
      cfg: Configuration of the decoder.
      backbone: Parameters, with the layers stacked or separate.
      bias: float32[l, e], selection bias of the routers.
      x: float[b, t, d]; positions that exist come first.
      valid: bool[b, t], positions that exist.
      memory: The positions before these; None: there are none, and no memory is returned.

    Returns:
      float[b, t, d] of the last layer, the memory with the positions, and the router statistics of
      all layers, stacked in order.
    """
    written = jnp.zeros(len(x), jnp.int32) if memory is None else memory.written
    layer = _layer(cfg, valid, written, memory is not None)

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
    state, stats = _State(x, *((memory.rings, memory.tails) if memory else ({}, {}))), []
    own = _first_group(cfg, backbone, bias)
    for stack in own:
        state, aux = run(state, stack)
        stats.append(aux)
    begin = int(bool(own))
    if groups > begin:
        rest = bias[begin * cfg.long_every :].reshape(-1, cfg.long_every, cfg.experts)
        xs = backbone[SLIDING], backbone[LONG], rest, np.arange(begin, groups)
        state, aux = run_stack(group, state, xs)
        stats.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), aux))
    aux = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stats)
    if memory is None:
        return state.x, None, aux
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)
    written = _step_back(written + count, state.rings)
    return state.x, Memory(written, state.rings, state.tails), aux


def _layer(cfg: DecoderConfig, valid: Array, written: Array, remembers: bool) -> _Layer:
    """The function that runs one layer."""
    found = kinds(cfg)
    blank = {name: init_tails(cfg, len(valid), kind, 1) for name, kind in found.items()}

    def layer(
        name: str, kind: str, state: _State, params: Params, bias: Array, index: Array
    ) -> tuple[_State, BlockAux]:
        place = index if remembers else 0
        tails = jax.tree.map(lambda leaf: leaf[:, place], (state.tails or blank)[kind])
        keys = Keys(found[kind].sight, written, state.rings.get(kind), index)
        module = DecoderLayer(cfg, found[kind].kv_heads, found[kind].extent, name == FIRST_DENSE)
        params = gather_and_cast(params, name, cfg.dtype)
        x, new, keys, aux = module.apply({"params": params}, state.x, valid, bias, tails, keys)
        if keys.ring is None:
            return state._replace(x=x), aux
        put = jax.tree.map(lambda leaf, one: leaf.at[:, index].set(one), state.tails[kind], new)
        return _State(x, {**state.rings, kind: keys.ring}, {**state.tails, kind: put}), aux

    if cfg.remat == "nothing":
        return layer
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = products if cfg.remat == "all but products" else None
    return jax.checkpoint(layer, static_argnums=(0, 1), policy=policy)


def _first_group(cfg: DecoderConfig, backbone: Params, bias: Array) -> list[_Stack]:
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


def _step_back(written: Array, rings: dict[str, Ring]) -> Array:
    """Keeps the index of the next position small: the same slots, and far from the start."""
    lap = int(np.lcm.reduce([ring.k.shape[2] for ring in rings.values()]))
    lap *= (1 << 29) // lap
    return jnp.where(written >= 1 << 30, written - lap, written)


def separate_decoder(backbone: Params) -> Params:
    """The parameters with separate layers instead of stacked ones, for loops in `run_decoder`."""
    names = (FIRST_DENSE, FIRST_SLIDING, FIRST_LONG, LONG)
    apart: dict[str, Any] = {name: unstack(backbone[name]) for name in names if name in backbone}
    if SLIDING in backbone:
        apart[SLIDING] = tuple(unstack(group) for group in unstack(backbone[SLIDING]))
    return {**backbone, **apart}


def init_decoder(cfg: DecoderConfig, key: Array) -> Params:
    """Fresh parameters of all layers, float32, stacked.

    Args:
      cfg: Configuration of the decoder.
      key: Typed PRNG key [].
    """
    found = kinds(cfg)
    x, valid = jnp.zeros((1, 1, cfg.dim)), jnp.ones((1, 1), bool)

    def init(name: str, kind: str, key: Array) -> Params:
        module = DecoderLayer(cfg, found[kind].kv_heads, found[kind].extent, name == FIRST_DENSE)
        keys = Keys(found[kind].sight, jnp.zeros(1, jnp.int32), None, 0)
        tails = jax.tree.map(lambda leaf: leaf[:, 0], init_tails(cfg, 1, found[kind], 1))
        return module.init(key, x, valid, jnp.zeros(cfg.experts), tails, keys)["params"]

    keys = jax.random.split(key, cfg.layers).reshape(-1, cfg.long_every)
    made, begin, dense = {}, 0, cfg.dense_layers

    def stack(name: str, kind: str, keys: Array) -> Params:
        one = lambda key: init(name, kind, key)  # noqa: E731
        for _ in range(keys.ndim):
            one = jax.vmap(one)
        return one(keys)

    if dense:
        begin = 1
        made[FIRST_DENSE] = stack(FIRST_DENSE, SLIDING, keys[0, :dense])
        if dense < cfg.long_every - 1:
            made[FIRST_SLIDING] = stack(FIRST_SLIDING, SLIDING, keys[0, dense:-1])
        made[FIRST_LONG] = stack(FIRST_LONG, LONG, keys[0, -1:])
    if len(keys) > begin:
        made[SLIDING] = stack(SLIDING, SLIDING, keys[begin:, :-1])
        made[LONG] = stack(LONG, LONG, keys[begin:, -1])
    return made
