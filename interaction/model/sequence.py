"""Runs the transformer on complete sessions, teacher-forced, for training."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.distributed.collectives import AXES, SEQUENCE, axis_index, axis_size, gather
from interaction.distributed.sharding import gather_and_cast
from interaction.model.backbone import LONG, SLIDING, run_layers, separate_layers
from interaction.model.heads import Outputs, apply_heads
from interaction.model.positions import embed, embed_arrivals, last_positions
from interaction.model.turn_inputs import Arrivals, TurnInputs
from interaction.modules.block import BlockAux
from interaction.modules.layer_attention import SequenceKeys
from interaction.types import Array, Params
from pallas_kernels.implementation import platform

CPU_SESSIONS = 4  # sessions that `forward` takes at once on a CPU, so that they fit in its cache


def forward(
    config: ModelConfig,
    backbone: Params,
    bias: Array,
    inputs: TurnInputs,
    arrivals: Arrivals | None = None,
) -> Outputs:
    """`encode` and `apply_heads`: the outputs of n teacher-forced steps.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      bias: float32[l, e], selection bias of the routers.
      inputs: Inputs of n micro-turns.
      arrivals: See `encode`.

    Returns:
      The outputs of n micro-turns.
    """
    tail, _, aux = encode(config, backbone, bias, inputs, arrivals)
    params = gather_and_cast(backbone["heads"], "heads", config.transformer.dtype)
    return Outputs(*apply_heads(config, params, tail), aux)


def encode(
    config: ModelConfig,
    backbone: Params,
    bias: Array,
    inputs: TurnInputs,
    arrivals: Arrivals | None = None,
) -> tuple[Array, Array, BlockAux]:
    """Runs the layers on n micro-turns from the start of a session, teacher-forced.

    On a mesh whose axis `sequence` splits sessions, `inputs` are this device's n micro-turns; the
    keys and values of each layer are gathered.

    Args:
      config: Model configuration.
      backbone: Parameters of the backbone.
      bias: float32[l, e], selection bias of the routers.
      inputs: Inputs of n micro-turns.
      arrivals: Text at any times in addition to that in `inputs`; None where `sequence` splits
        sessions.

    Returns:
      The last layer's audio and text-out positions float[b, n, audio_positions + 1, d], its
      positions of the arrivals float[b, m, d], and the router statistics of all layers, of this
      device's tokens alone.

    Raises:
      ValueError: There are arrivals, and `sequence` splits sessions.
    """
    cfg = config.transformer
    b, n = inputs.last.shape
    start = jnp.asarray(axis_index(SEQUENCE) * n, jnp.uint32)
    positions = embed(config, backbone, inputs, jnp.full(b, start))
    turns = positions.x.shape[1]
    rank = None
    if arrivals is not None:
        if axis_size(SEQUENCE) > 1:
            raise ValueError(
                f"arrivals: got a mesh with sequence={axis_size(SEQUENCE)}, wanted 1 for sessions "
                "in which text arrives; split over fsdp or expert instead"
            )
        beside = embed_arrivals(config, backbone, arrivals)
        positions = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), positions, beside)
        by_time = jnp.argsort(jnp.where(positions.valid, positions.time, ~jnp.uint32(0)), axis=1)
        rank = jnp.argsort(by_time, axis=1)
        positions = jax.tree.map(partial(_take_positions, by_time), positions)
    valid = gather(positions.valid, SEQUENCE, dim=1)
    order = jnp.cumsum(valid, axis=1, dtype=jnp.uint32) - jnp.uint32(1)
    keys = dict.fromkeys((SLIDING, LONG), SequenceKeys(order, valid))
    at_once = 0
    if platform() == "cpu" and axis_size(*AXES) == 1:
        at_once, backbone = math.gcd(b, CPU_SESSIONS), separate_layers(backbone)
    x, _, aux = run_layers(cfg, backbone, bias, positions, keys, {}, at_once=at_once)
    if rank is not None:
        x = _take_positions(rank, x)
    return last_positions(config, x[:, :turns], n), x[:, turns:], aux


def _take_positions(order: Array, x: Array) -> Array:
    """[b, t, ...] in another order, int32[b, t]."""
    return jax.vmap(lambda x, order: x[order])(x, order)
