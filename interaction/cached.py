"""The transformer on new positions of sessions whose earlier ones stand in ring caches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from interaction.config import TransformerConfig
from interaction.model import LONG, SLIDING, Positions, run_layers
from interaction.modules.block import BlockAux
from interaction.ops import ring
from interaction.ops.attention import attention_batch, window_mask
from interaction.parallel import FSDP, SESSIONS, TENSOR, axis_size, local
from interaction.types import Array, Params


class Cache(NamedTuple):
    """Ring caches of the layers of one kind."""

    k: Array  # [b, l, capacity, g, k], turned by RoPE
    v: Array  # [b, l, capacity, g, k]


def session_specs(state: Any) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a named tuple of arrays [b, ...] with `caches`.

    Sessions lie over `parallel.SESSIONS`, the heads of caches over `tensor`.
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
      params: The model's, trunk and router_bias.
      positions: At most as many a session as the rings were made for.
      rings: Before them.
      caches: Before them.

    Returns:
      [b, t, d] of the last layer, rings and caches with the positions, and the layers' reports.
    """
    order = ring.new_order(rings, positions.valid)
    rows = jnp.arange(order.shape[0])[:, None]
    capacity = {kind: cache.k.shape[2] for kind, cache in caches.items()}
    window = {SLIDING: cfg.window, LONG: cfg.long_window}
    after = ring.advance(rings, positions.valid, max(capacity.values()))
    slots, masks = {}, {}
    for kind, size in capacity.items():
        slots[kind] = ring.ring_slots(rings, positions.valid, size)
        masks[kind] = window_mask(order, *ring.slot_order(after, size), window[kind])

    def attend(
        kind: str, layer: Array, caches: dict, q: Array, k: Array, v: Array, sink: Array
    ) -> tuple[Array, dict]:
        place = (rows, layer, slots[kind])
        keys = caches[kind].k.at[place].set(k, mode="drop")
        values = caches[kind].v.at[place].set(v, mode="drop")
        mixed = attention_batch(q, keys[:, layer], values[:, layer], masks[kind], sink)
        return mixed, {**caches, kind: Cache(keys, values)}

    trunk: Any = params["trunk"]
    kept = trunk[LONG][0] if isinstance(trunk[LONG], tuple) else trunk[LONG]
    in_place = axis_size(FSDP) == 1 and kept["gate"].dtype == cfg.dtype
    x, caches, aux = run_layers(
        cfg, trunk, params["router_bias"], positions, attend, caches, in_place=in_place
    )
    return x, after, caches, aux
