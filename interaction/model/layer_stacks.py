"""Parameters of the decoder's layers: kinds of layers, and the stacks that they lie in.

Layers come in groups of `long_every`: sliding-window layers, then a long one. Some of the first
group's layers may be dense; then that group has parameters of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import TransformerConfig
from interaction.distributed.collectives import EXPERTS, local
from interaction.distributed.experts import Experts
from interaction.modules.decoder_attention import Keys
from interaction.modules.decoder_layer import DecoderLayer
from interaction.modules.memory import LONG, SLIDING
from interaction.ops import block_attention
from interaction.ops.layers import unstack
from interaction.ops.sequence_attention import Sight
from interaction.types import Array, Params

# Parameters of the first group's layers, where some of them are dense.
FIRST_DENSE, FIRST_SLIDING, FIRST_LONG = "first_dense", "first_sliding", "first_long"


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


class Stack(NamedTuple):
    """Layers of one form: the name of their parameters, their kind, and what they read."""

    name: str
    kind: str
    params: Any  # stacked or separate
    bias: Array  # float32[l, e]
    first: Array | int  # index of the first one among the layers of the kind


def first_group(cfg: TransformerConfig, backbone: Params, bias: Array) -> list[Stack]:
    """The stacks of the first group, if it has parameters of its own.

    Args:
      cfg: Configuration of the transformer.
      backbone: Parameters, with the layers stacked or separate.
      bias: float32[l, e], selection bias of the routers.
    """
    dense, sliding = cfg.dense_layers, cfg.long_every - 1
    if not dense:
        return []
    stacks = [Stack(FIRST_DENSE, SLIDING, backbone[FIRST_DENSE], bias[:dense], 0)]
    if dense < sliding:
        mine = backbone[FIRST_SLIDING], bias[dense:sliding]
        stacks.append(Stack(FIRST_SLIDING, SLIDING, *mine, dense))
    mine = backbone[FIRST_LONG], bias[sliding : sliding + 1]
    return [*stacks, Stack(FIRST_LONG, LONG, *mine, 0)]


def long_layers(backbone: Params) -> Any:  # noqa: ANN401
    """The long layers of the last group, which every model has: stacked or separate."""
    return backbone[LONG if LONG in backbone else FIRST_LONG]


class ExpertStack(NamedTuple):
    """The experts of all layers of one form."""

    gate: Array  # [l * e, d, f]
    up: Array  # [l * e, d, f]
    down: Array  # [l * e, f, d]
    first: int  # index of the first layer among the layers of its kind

    def of_layer(self, cfg: TransformerConfig, index: Array) -> Experts:
        """The experts of the layer int32[] of its kind, on a mesh those of one device."""
        count = local(cfg.experts, *EXPERTS)
        return Experts(self.gate, self.up, self.down, count, (index - self.first) * count)


def split_off_experts(
    cfg: TransformerConfig, backbone: Params
) -> tuple[Params, dict[str, ExpertStack]]:
    """Stacked layers without their experts' weights, and these weights by the layers' form."""
    own = int(cfg.dense_layers > 0)
    firsts = {FIRST_SLIDING: cfg.dense_layers, FIRST_LONG: 0}
    firsts |= {SLIDING: own * (cfg.long_every - 1), LONG: own}
    rest, stacks = dict(backbone), {}
    for name in firsts.keys() & backbone.keys():
        weights = dict(backbone[name])
        gate, up, down = (
            stacked.reshape(-1, *stacked.shape[-2:])
            for stacked in (weights.pop(part) for part in ("gate", "up", "down"))
        )
        stacks[name] = ExpertStack(gate, up, down, firsts[name])
        rest[name] = weights
    return rest, stacks


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
