"""The layers of the Inkling decoder: one code path for training and for the step.

Layers come in groups of `long_every`: sliding-window layers, then a long one. Some of the first
group's layers may be dense, so that group has parameters of its own. The other groups, and the
sliding layers inside them, are scans over stacked parameters, or loops over separate ones.
"""

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
        k, first = (
            jnp.zeros((sessions, kind.layers, size, *heads), cfg.dtype)
            for size in (slots, block_attention.FIRST)
        )
        return Ring(k, k, first, first) if name == LONG else Ring(k, k, None, None)

    found = kinds(cfg)
    return Memory(
        written=jnp.zeros(sessions, jnp.int32),
        rings={name: ring(name, kind) for name, kind in found.items()},
        tails={name: init_tails(cfg, sessions, kind, kind.layers) for name, kind in found.items()},
    )


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
    found, b = kinds(cfg), len(x)
    written = jnp.zeros(b, jnp.int32) if memory is None else memory.written
    blank = {name: init_tails(cfg, b, kind, 1) for name, kind in found.items()}

    def layer(name: str, kind: str, state: tuple, params: Params, bias: Array, index: Array) -> tuple:
        x, rings, tails = state
        place = 0 if memory is None else index
        mine = jax.tree.map(lambda leaf: leaf[:, place], (tails or blank)[kind])
        keys = Keys(found[kind].sight, written, rings.get(kind), index)
        module = DecoderLayer(cfg, found[kind].kv_heads, found[kind].extent, name == FIRST_DENSE)
        params = gather_and_cast(params, name, cfg.dtype)
        x, new, keys, aux = module.apply({"params": params}, x, valid, bias, mine, keys)
        if keys.ring is not None:
            rings = {**rings, kind: keys.ring}
            put = jax.tree.map(lambda leaf, one: leaf.at[:, index].set(one), tails[kind], new)
            tails = {**tails, kind: put}
        return (x, rings, tails), aux

    if cfg.remat != "nothing":
        products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        policy = products if cfg.remat == "all but products" else None
        layer = jax.checkpoint(layer, static_argnums=(0, 1), policy=policy)

    sliding = cfg.long_every - 1
    state = x, *(({}, {}) if memory is None else (memory.rings, memory.tails))
    stats = []

    def run(name: str, kind: str, state: tuple, params: Any, bias: Array, first: Any) -> tuple:  # noqa: ANN401
        """Layers of the same parameters' shapes, one after another."""

        def one(state: tuple, xs: tuple) -> tuple:
            return layer(name, kind, state, *xs)

        return run_stack(one, state, (params, bias, first + np.arange(len(bias))))

    begin = 0  # groups with parameters of their own
    if cfg.dense_layers:
        begin, dense = 1, cfg.dense_layers
        state, aux = run(FIRST_DENSE, SLIDING, state, backbone[FIRST_DENSE], bias[:dense], 0)
        stats.append(aux)
        if dense < sliding:
            mine = backbone[FIRST_SLIDING], bias[dense:sliding]
            state, aux = run(FIRST_SLIDING, SLIDING, state, *mine, dense)
            stats.append(aux)
        mine = backbone[FIRST_LONG], bias[sliding : sliding + 1]
        state, aux = run(FIRST_LONG, LONG, state, *mine, 0)
        stats.append(aux)

    def group(state: tuple, xs: tuple) -> tuple:
        sliding_params, long_params, bias, index = xs
        state, below = run(
            SLIDING, SLIDING, state, sliding_params, bias[:sliding], index * sliding
        )
        state, above = layer(LONG, LONG, state, long_params, bias[sliding], index)
        return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), below, above)

    groups = cfg.layers // cfg.long_every
    if groups > begin:
        grouped = bias[begin * cfg.long_every :].reshape(-1, cfg.long_every, cfg.experts)
        xs = backbone[SLIDING], backbone[LONG], grouped, np.arange(begin, groups)
        state, aux = run_stack(group, state, xs)
        stats.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), aux))
    x, rings, tails = state
    aux = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stats)
    if memory is None:
        return x, None, aux
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)
    return x, Memory(_step_back(written + count, rings), rings, tails), aux


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
