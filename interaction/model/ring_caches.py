"""The transformer on new positions of sessions whose earlier ones stand in ring caches."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from interaction.config import TransformerConfig
from interaction.distributed.collectives import FSDP, SESSIONS, TENSOR, axis_size, local
from interaction.model.backbone import LONG, SLIDING, run_layers
from interaction.model.positions import Positions
from interaction.modules.attention import Cache, RingKeys
from interaction.modules.block import BlockAux
from interaction.ops import ring
from interaction.ops.attention import window_mask
from interaction.types import Array, Params


def session_specs(state: Any) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a named tuple of arrays [b, ...] with `caches`.

    Sessions lie over `collectives.SESSIONS`, the heads of caches over `tensor`.
    """
    specs = jax.tree.map(lambda leaf: PartitionSpec(SESSIONS), state)
    heads = PartitionSpec(SESSIONS, None, None, TENSOR)
    return specs._replace(caches=jax.tree.map(lambda leaf: heads, state.caches))


def init_caches(
    cfg: TransformerConfig, sessions: int, span: int
) -> tuple[ring.RingClock, dict[str, Cache]]:
    """Empty rings.

    Args:
      cfg: The transformer's.
      sessions: How many.
      span: Positions that are written at once at most.
    """
    groups = cfg.layers // cfg.long_every

    def cache(layers: int, window: int) -> Cache:
        capacity = ring.ring_capacity(window, span)
        shape = (sessions, layers, capacity, local(cfg.kv_heads, TENSOR), cfg.head_dim)
        return Cache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))

    clock = ring.RingClock(jnp.zeros(sessions, jnp.uint32), jnp.zeros(sessions, jnp.int32))
    return clock, {
        SLIDING: cache(groups * (cfg.long_every - 1), cfg.window),
        LONG: cache(groups, cfg.long_window),
    }


def run_cached(
    cfg: TransformerConfig,
    params: Params,
    positions: Positions,
    rings: ring.RingClock,
    caches: dict[str, Cache],
) -> tuple[Array, ring.RingClock, dict[str, Cache], BlockAux]:
    """Runs all layers on new positions; what is not valid is not written.

    Args:
      cfg: The transformer's.
      params: The model's, backbone and router_bias.
      positions: At most as many a session as the rings were made for.
      rings: Before them.
      caches: Before them.

    Returns:
      [b, t, d] of the last layer, rings and caches with the positions, and the layers' reports.
    """
    after, keys = ring_keys(cfg, positions.valid, rings, caches)
    backbone: Any = params["backbone"]
    kept = backbone[LONG][0] if isinstance(backbone[LONG], tuple) else backbone[LONG]
    in_place = axis_size(FSDP) == 1 and kept["gate"].dtype == cfg.dtype
    x, caches, aux = run_layers(
        cfg, backbone, params["router_bias"], positions, keys, caches, in_place=in_place
    )
    return x, after, caches, aux


def ring_keys(
    cfg: TransformerConfig, valid: Array, rings: ring.RingClock, caches: dict[str, Cache]
) -> tuple[ring.RingClock, dict[str, RingKeys]]:
    """Where new positions are written in the rings, and which slots they see afterwards.

    Args:
      cfg: The transformer's.
      valid: bool[b, t], new positions that exist.
      rings: Before them.
      caches: Before them.

    Returns:
      The rings after them, and the keys of each kind of layer.
    """
    order = ring.new_order(rings, valid)
    capacity = {kind: cache.k.shape[2] for kind, cache in caches.items()}
    window = {SLIDING: cfg.window, LONG: cfg.long_window}
    after = ring.advance(rings, valid, max(capacity.values()))
    return after, {
        kind: RingKeys(
            slots=ring.ring_slots(rings, valid, size),
            mask=window_mask(order, *ring.slot_order(after, size), window[kind]),
        )
        for kind, size in capacity.items()
    }
