"""Runs the transformer on new positions of sessions whose earlier positions are in ring caches."""

import jax.numpy as jnp

from interaction.config import FirstTransformerConfig
from interaction.distributed.collectives import TENSOR, local
from interaction.model.first.first_layers import run_layers
from interaction.model.positions import Positions
from interaction.modules.first.layer_attention import RingKeys
from interaction.modules.memory import LONG, SLIDING, Cache, Memory
from interaction.modules.router_stats import BlockAux
from interaction.ops import ring
from interaction.ops.attention import window_mask
from interaction.types import Array, Params


def init_memory(cfg: FirstTransformerConfig, sessions: int, span: int) -> Memory:
    """Empty rings.

    Args:
      cfg: Configuration of the transformer.
      sessions: Number of sessions.
      span: Most positions of a session that are written at once.
    """
    groups = cfg.layers // cfg.long_every

    def cache(layers: int, window: int) -> Cache:
        capacity = ring.ring_capacity(window, span)
        shape = (sessions, layers, capacity, local(cfg.kv_heads, TENSOR), cfg.head_dim)
        return Cache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))

    return Memory(
        clock=ring.RingClock(jnp.zeros(sessions, jnp.uint32), jnp.zeros(sessions, jnp.int32)),
        tails={},
        caches={
            SLIDING: cache(groups * (cfg.long_every - 1), cfg.window),
            LONG: cache(groups, cfg.long_window),
        },
    )


def run_cached(
    cfg: FirstTransformerConfig,
    params: Params,
    positions: Positions,
    memory: Memory,
    in_place: bool,
) -> tuple[Array, Memory, BlockAux]:
    """Runs all layers on new positions, see `transformer.run_cached`.

    Returns:
      float[b, t, d] of the last layer, the memory with the positions, and the router statistics.
    """
    clock, keys = ring_keys(cfg, positions.valid, memory)
    x, caches, aux = run_layers(
        cfg,
        params["backbone"],
        params["router_bias"],
        positions,
        keys,
        memory.caches,
        in_place=in_place,
    )
    return x, Memory(clock, {}, caches), aux


def ring_keys(
    cfg: FirstTransformerConfig, valid: Array, memory: Memory
) -> tuple[ring.RingClock, dict[str, RingKeys]]:
    """The slots to which new positions are written, and the slots that they see afterwards.

    Args:
      cfg: Configuration of the transformer.
      valid: bool[b, t], new positions that exist.
      memory: The memory before them.

    Returns:
      The clock after them, and the keys of each kind of layer.
    """
    order = ring.new_order(memory.clock, valid)
    capacity = {kind: cache.k.shape[2] for kind, cache in memory.caches.items()}
    window = {SLIDING: cfg.window, LONG: cfg.long_window}
    after = ring.advance(memory.clock, valid, max(capacity.values()))
    return after, {
        kind: RingKeys(
            slots=ring.ring_slots(memory.clock, valid, size),
            mask=window_mask(order, *ring.slot_order(after, size), window[kind]),
        )
        for kind, size in capacity.items()
    }
