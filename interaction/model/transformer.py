"""The transformer of a model on positions of sessions, of either architecture."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from interaction.config import FirstTransformerConfig, ModelConfig
from interaction.distributed.collectives import FSDP, SESSIONS, TENSOR, axis_size
from interaction.model import decoder, layer_stacks
from interaction.model.first import first_layers, ring_caches as first_ring_caches
from interaction.model.positions import Positions
from interaction.modules.memory import Memory
from interaction.modules.router_stats import BlockAux
from interaction.types import Array, Params


def session_specs(state: Any) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a named tuple of arrays [b, ...] with a `memory`.

    Sessions are split over `collectives.SESSIONS`, the heads of keys and values over `tensor`.
    """
    specs = jax.tree.map(lambda leaf: PartitionSpec(SESSIONS), state)
    heads = PartitionSpec(SESSIONS, None, None, TENSOR)
    memory = specs.memory
    tails = {kind: one._replace(key=heads, value=heads) for kind, one in memory.tails.items()}
    caches = jax.tree.map(lambda leaf: heads, state.memory.caches)
    return specs._replace(memory=memory._replace(tails=tails, caches=caches))


def init_memory(config: ModelConfig, sessions: int, span: int) -> Memory:
    """The memory of sessions before their first position.

    Args:
      config: Model configuration.
      sessions: Number of sessions.
      span: Most positions of a session that are written at once.
    """
    if isinstance(config.transformer, FirstTransformerConfig):
        return first_ring_caches.init_memory(config.transformer, sessions, span)
    return decoder.init_memory(config.transformer, sessions, span)


def run_cached(
    config: ModelConfig, params: Params, positions: Positions, memory: Memory
) -> tuple[Array, Memory, BlockAux]:
    """Runs all layers on the next positions of sessions.

    Args:
      config: Model configuration.
      params: Parameters of the model, of which backbone and router_bias are used.
      positions: New positions, at most `span` of `init_memory` for each session.
      memory: The memory before them.

    Returns:
      float[b, t, d] of the last layer, the memory with the positions, and the router statistics of
      all layers.
    """
    cfg, backbone = config.transformer, params["backbone"]
    kept: Any = layer_stacks.long_layers(backbone)
    kept = kept[0] if isinstance(kept, tuple) else kept
    in_place = axis_size(FSDP) == 1 and kept["gate"].dtype == cfg.dtype
    if isinstance(cfg, FirstTransformerConfig):
        return first_ring_caches.run_cached(cfg, params, positions, memory, in_place)
    bias = params["router_bias"]
    x, after, aux = decoder.run_decoder(cfg, backbone, bias, positions, memory, in_place=in_place)
    return x, memory if after is None else after, aux


def separate_layers(backbone: Params) -> Params:
    """The parameters with separate layers instead of stacked ones, see `ops.layers.run_stack`."""
    if "sink" in layer_stacks.long_layers(backbone):
        return first_layers.separate_layers(backbone)
    return layer_stacks.separate_layers(backbone)


def init_layers(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters of all layers, float32, stacked.

    Args:
      config: Model configuration.
      key: Typed PRNG key [].
    """
    if isinstance(config.transformer, FirstTransformerConfig):
        return first_layers.init_layers(config.transformer, key)
    return layer_stacks.init_layers(config.transformer, key)
