"""Runs the transformer on complete sessions, teacher-forced, for training."""

import math

import jax.numpy as jnp

from interaction.config import FirstTransformerConfig, ModelConfig
from interaction.distributed.collectives import AXES, SEQUENCE, axis_index, axis_size
from interaction.distributed.sharding import gather_and_cast
from interaction.model.decoder import run_decoder
from interaction.model.heads import Outputs, apply_heads
from interaction.model.layer_stacks import separate_layers
from interaction.model.positions import embed, take_positions
from interaction.model.turn_inputs import Arrivals, TurnInputs
from interaction.modules.router_stats import BlockAux
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
      ValueError: There are arrivals, and `sequence` splits sessions; or the model is one of those
        that were released first.
    """
    cfg = config.transformer
    b, n = inputs.last.shape
    if isinstance(cfg, FirstTransformerConfig):
        raise ValueError(
            "transformer: got the one of the models that were released first, wanted the present "
            "one; the first models run in the step alone"
        )
    if arrivals is not None and axis_size(SEQUENCE) > 1:
        raise ValueError(
            f"arrivals: got a mesh with sequence={axis_size(SEQUENCE)}, wanted 1 for sessions "
            "in which text arrives; split over fsdp or expert instead"
        )
    start = jnp.asarray(axis_index(SEQUENCE) * n, jnp.uint32)
    positions = embed(config, backbone, inputs, jnp.full(b, start), arrivals)
    at_once = 0
    if platform() == "cpu" and axis_size(*AXES) == 1:
        at_once, backbone = math.gcd(b, CPU_SESSIONS), separate_layers(backbone)
    x, _, aux = run_decoder(cfg, backbone, bias, positions, None, at_once=at_once)
    tail = take_positions(x, positions.ends)
    none = jnp.zeros((b, 0, cfg.dim), x.dtype)
    beside = none if positions.arrived is None else take_positions(x, positions.arrived)
    return tail, beside, aux
