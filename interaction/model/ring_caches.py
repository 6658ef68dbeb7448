"""Runs the transformer on new positions of sessions whose earlier positions are in ring caches."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from interaction.config import TransformerConfig
from interaction.distributed.collectives import FSDP, SESSIONS, TENSOR, axis_size, local
from interaction.model.backbone import LONG, SLIDING, run_layers
from interaction.model.positions import Positions
from interaction.modules.block import BlockAux
from interaction.modules.layer_attention import Cache, RingKeys
from interaction.ops import ring
from interaction.ops.attention import window_mask
from interaction.types import Array, Params


def session_specs(state: Any) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a named tuple of arrays [b, ...] with `caches`.

    Sessions are split over `collectives.SESSIONS`, the heads of caches over `tensor`.
    """
    specs = jax.tree.map(lambda leaf: PartitionSpec(SESSIONS), state)
    heads = PartitionSpec(SESSIONS, None, None, TENSOR)
    return specs._replace(caches=jax.tree.map(lambda leaf: heads, state.caches))


def init_caches(
    cfg: TransformerConfig, sessions: int, span: int
) -> tuple[ring.RingClock, dict[str, Cache]]:
    """Empty rings.

    Args:
      cfg: Configuration of the transformer.
      sessions: Number of sessions.
      span: Most positions of a session that are written at once.

    Returns:
      The clock, and the caches of each kind of layer in the computing dtype.
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
    """Runs all layers on new positions; invalid positions are not written.

    Args:
      cfg: Configuration of the transformer.
      params: Parameters of the model, of which backbone and router_bias are used.
      positions: New positions, at most `span` of `init_caches` for each session.
      rings: Clock of the rings before them.
      caches: Caches before them.

    Returns:
      float[b, t, d] of the last layer, the clock and the caches after the positions, and the router
      statistics of all layers.
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
    """The slots to which new positions are written, and the slots that they see afterwards.

    Args:
      cfg: Configuration of the transformer.
      valid: bool[b, t], new positions that exist.
      rings: Clock of the rings before them.
      caches: Caches before them.

    Returns:
      The clock after them, and the keys of each kind of layer.
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
