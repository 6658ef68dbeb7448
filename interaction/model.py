"""The transformer over micro-turns: one code path for training and for the step.

Layers come in groups of `long_every`: sliding-window layers, then a long one. Groups and the
sliding layers inside them are scans over stacked parameters, or loops over separate ones.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interaction.config import ModelConfig, TransformerConfig
from interaction.modules.audio_in import AudioIn
from interaction.modules.block import Block, BlockAux
from interaction.modules.speech_out import FlowNet, SpeechCondition
from interaction.modules.text import ReadOut, TextIn
from interaction.modules.video_in import VideoIn
from interaction.ops import rope
from interaction.ops.attention import (
    LONG as LONG_INPUT,
    attention_batch,
    attention_long,
    window_mask,
)
from interaction.ops.experts import Experts
from interaction.ops.layers import run_stack, unstack
from interaction.parallel import (
    AXES,
    EXPERTS,
    SEQUENCE,
    axis_index,
    axis_size,
    gather,
    local,
    take_part,
)
from interaction.sharding import whole
from interaction.types import Array, Params, Special
from pallas_kernels.implementation import platform

SLIDING, LONG = "sliding", "long"
_FFN = ("gate", "up", "down")  # the experts' weights
CPU_SESSIONS = 4  # that a CPU takes at once in `forward`: what they hold stays in its cache


class TurnInputs(NamedTuple):
    """What the transformer reads in n micro-turns."""

    user: Array  # int32[b, n, frames, m], dMel of the user
    # int32[b, n, frames, m], dMel of the model's speech one micro-turn earlier; None blanks all
    own: Array | None
    hear_own: Array  # float32[b, n], 0 where own speech is blanked
    heard: Array  # int32[b, n, audio_positions], transcription of the previous micro-turn
    last: Array  # int32[b, n], text-out token of the previous micro-turn
    text: Array | None = None  # int32[b, n, text_slots], PAD where empty
    frame: Array | None = None  # float32[b, n, size, size, 3]
    has_frame: Array | None = None  # bool[b, n]
    exists: Array | None = None  # bool[b, n], None where all do; what does not may be anything


class Arrivals(NamedTuple):
    """Text at places of its own on the clock, beside micro-turns of which most have none."""

    token: Array  # int32[b, m], PAD where there is none
    time: Array  # uint32[b, m], micro-turn * turn_span + slot; no two of a session are equal


class Outputs(NamedTuple):
    """What the transformer says about n micro-turns."""

    text_logits: Array  # float32[b, n, v]
    heard_logits: Array  # float32[b, n, audio_positions, v]
    hidden: Array  # [b, n, d], conditions speech
    aux: BlockAux  # load float32[l, e]; router_z float32[l]


class Positions(NamedTuple):
    """Embedded positions of n micro-turns, in order."""

    x: Array  # [b, t, d]
    valid: Array  # bool[b, t]
    time: Array  # uint32[b, t], place on the session's clock, for RoPE


def init_params(config: ModelConfig, key: Array) -> tuple[Params, Params, Array]:
    """Fresh parameters.

    Returns:
      The trunk, the speech head, and the router's selection bias float32[l, e].
    """
    cfg = config.transformer
    keys = iter(jax.random.split(key, 8))
    turn = blank_inputs(config, 1)
    x = jnp.zeros((1, 1, cfg.dim))
    layer_keys = jax.random.split(next(keys), cfg.layers).reshape(-1, cfg.long_every)

    def attend(q: Array, k: Array, v: Array, sink: Array) -> tuple[Array, None]:
        return q, None

    def init_block(key: Array) -> Params:
        turn = rope.rope_turn(jnp.zeros((1, 1), jnp.uint32), cfg.head_dim, cfg.rope_base)
        valid = jnp.ones((1, 1), bool)
        bias = jnp.zeros(cfg.experts)
        return Block(cfg).init(key, x, turn, valid, bias, attend)["params"]

    frame = jnp.zeros((1, config.frame_size, config.frame_size, 3))
    audio = jnp.zeros((1, 1, config.audio_positions, cfg.dim))
    trunk = {
        "audio_in": AudioIn(config).init(next(keys), turn.user, turn.own, turn.hear_own)["params"],
        "video_in": VideoIn(config).init(next(keys), frame)["params"],
        "text_in": TextIn(config).init(next(keys), None, turn.heard, turn.last)["params"],
        SLIDING: jax.vmap(jax.vmap(init_block))(layer_keys[:, :-1]),
        LONG: jax.vmap(init_block)(layer_keys[:, -1]),
        "read_out": ReadOut(config).init(next(keys), audio, x)["params"],
    }
    return (
        trunk,
        init_speech(config, next(keys)),
        jnp.zeros((cfg.layers, cfg.experts)),
    )


def init_speech(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters of the flow head."""
    prefix = jnp.zeros((1, config.speech.prefix_frames, config.audio.mels))
    tokens = jnp.zeros((1, config.speech.token_window), jnp.int32)
    hidden = jnp.zeros((1, config.transformer.dim))
    condition_key, flow_key = jax.random.split(key)
    (features, guess), params = SpeechCondition(config).init_with_output(
        condition_key, hidden, tokens, prefix
    )
    flow = FlowNet(config).init(flow_key, guess, jnp.zeros(1), features, guess)
    return {"condition": params["params"], "flow": flow["params"]}


def blank_inputs(config: ModelConfig, sessions: int) -> TurnInputs:
    """One micro-turn of silence on both sides, without text or frame."""
    shape = (sessions, 1, config.audio.user_frames, config.audio.mels)
    bins = jnp.zeros(shape, jnp.int32)
    heard = jnp.full((sessions, 1, config.audio_positions), Special.NONE, jnp.int32)
    last = jnp.full((sessions, 1), Special.SILENT, jnp.int32)
    return TurnInputs(bins, bins, jnp.ones((sessions, 1)), heard, last)


def embed(config: ModelConfig, trunk: Params, inputs: TurnInputs, clock: Array) -> Positions:
    """Lays n micro-turns out as positions: text in, video, audio, text out.

    A kind that no session has in this call takes no positions; where it stands on the clock does
    not depend on that, so rows do not see which variant they ran in.

    Args:
      config: The model's.
      trunk: Its parameters.
      inputs: n micro-turns.
      clock: uint32[b], number of the first micro-turn.

    Returns:
      The positions, [b, n * positions of the variant].
    """
    b, n = inputs.last.shape
    dtype = config.transformer.dtype

    def weights(part: str) -> dict[str, Params]:
        return {"params": whole(trunk[part], part, dtype)}

    audio = AudioIn(config).apply(weights("audio_in"), inputs.user, inputs.own, inputs.hear_own)
    arrived, heard, own = TextIn(config).apply(
        weights("text_in"), inputs.text, inputs.heard, inputs.last
    )
    parts, valid, offsets = [], [], []
    text_at, video_at, audio_at = 0, config.text_slots, config.text_slots + config.patches
    if arrived is not None:
        parts.append(arrived)
        valid.append(inputs.text != Special.PAD)
        offsets.append(text_at + jnp.arange(config.text_slots))
    if inputs.frame is not None:
        flat = inputs.frame.reshape(b * n, *inputs.frame.shape[2:])
        video = VideoIn(config).apply(weights("video_in"), flat)
        parts.append(video.reshape(b, n, config.patches, -1))
        has_frame = inputs.has_frame
        if has_frame is None:
            raise ValueError("has_frame: got None beside frame, wanted bool[b, n]; pass both")
        valid.append(jnp.broadcast_to(has_frame[..., None], (b, n, config.patches)))
        offsets.append(video_at + jnp.arange(config.patches))
    parts += [audio + heard, own]
    valid.append(jnp.ones((b, n, config.audio_positions + 1), bool))
    offsets.append(audio_at + jnp.arange(config.audio_positions + 1))
    x = jnp.concatenate(parts, axis=2)
    turn = clock[:, None] + jnp.arange(n, dtype=jnp.uint32)
    time = turn[:, :, None] * jnp.uint32(config.turn_span)
    time = time + jnp.concatenate(offsets).astype(jnp.uint32)
    exists = jnp.concatenate(valid, axis=2)
    if inputs.exists is not None:
        exists &= inputs.exists[..., None]
    # What is absent may be anything, NaN included.
    x = jnp.where(exists[..., None], x, 0).astype(dtype)
    flat = (b, n * x.shape[2])
    return Positions(x.reshape(*flat, -1), exists.reshape(flat), time.reshape(flat))


def embed_arrivals(config: ModelConfig, trunk: Params, arrivals: Arrivals) -> Positions:
    """Text at its own places, as `embed` has it in the micro-turns' text slots.

    Returns:
      The positions, [b, m].
    """
    dtype = config.transformer.dtype
    params = whole(trunk["text_in"], "text_in", dtype)
    slot = arrivals.time % jnp.uint32(config.turn_span)
    slot = jnp.minimum(slot, config.text_slots - 1).astype(jnp.int32)
    x = jnp.take(params["table"], arrivals.token, axis=0)
    x = x + jnp.take(params["slot"], slot, axis=0)
    exists = arrivals.token != Special.PAD
    return Positions(jnp.where(exists[..., None], x, 0).astype(dtype), exists, arrivals.time)


def last_positions(config: ModelConfig, x: Array, turns: int) -> Array:
    """Of all positions [b, t, d] those that are read out: [b, n, audio_positions + 1, d]."""
    b, t, d = x.shape
    return x.reshape(b, turns, t // turns, d)[:, :, -(config.audio_positions + 1) :]


def read_out(config: ModelConfig, params: Params, tail: Array) -> tuple[Array, Array, Array]:
    """Logits and speech condition from the last layer, see `ReadOut`.

    Args:
      config: The model's.
      params: Its read-out, `whole`.
      tail: [b, n, audio_positions + 1, d], from `last_positions`.

    Returns:
      Text logits float32[b, n, v], heard logits float32[b, n, audio_positions, v], and the
      normalised hidden state [b, n, d].
    """
    return ReadOut(config).apply({"params": params}, tail[:, :, :-1], tail[:, :, -1])


def read_text(config: ModelConfig, params: Params, x: Array) -> Array:
    """Logits of the text stream at positions [b, m, d] of the last layer, float32[b, m, v].

    Args:
      config: The model's.
      params: Its read-out, `whole`.
      x: From `encode` or `run_cached`.
    """
    return read_out(config, params, x[:, :, None])[0]


# (kind, index among the layers of its kind, carry, q, k, v, sink) -> (mixed, carry)
AttendLayer = Callable[[str, Array, Any, Array, Array, Array, Array], tuple[Array, Any]]


def run_layers(
    cfg: TransformerConfig,
    trunk: Params,
    bias: Array,
    positions: Positions,
    attend: AttendLayer,
    carry: Any,  # noqa: ANN401
    at_once: int = 0,
    in_place: bool = False,
) -> tuple[Array, Any, BlockAux]:
    """Runs all layers.

    Args:
      cfg: The transformer's.
      trunk: Parameters, the layers under SLIDING and LONG, stacked or separate.
      bias: float32[l, e], selection bias of the routers.
      positions: What to run on.
      attend: Mixes one layer's positions and updates `carry`.
      carry: Arrays of the sessions for `attend`, such as ring caches; axis 0 is the session.
      at_once: Sessions that a layer takes at once, a divisor of b; 0 means all. Otherwise a
        group's activations are computed again in the backward pass.
      in_place: Whether stacked layers read their experts' weights where they are, instead of from
        copies of their own; not for gradients.

    Returns:
      [b, t, d], the carry, and the layers' reports stacked in order.
    """
    turn = rope.rope_turn(positions.time, cfg.head_dim, cfg.rope_base)
    sliding = cfg.long_every - 1
    stacks: dict[str, tuple] = {}
    if in_place and not isinstance(trunk[LONG], tuple):
        trunk, stacks = _split_off_experts(trunk)

    def stacked(kind: str, index: Array) -> Experts | None:
        count = local(cfg.experts, *EXPERTS)
        if kind not in stacks:
            return None
        gate, up, down = stacks[kind]
        return Experts(gate, up, down, count, index * count)

    def layer(
        kind: str, state: tuple[Array, Any], params: Params, bias: Array, index: Array
    ) -> tuple[tuple[Array, Any], BlockAux]:
        params = whole(params, kind, cfg.dtype)

        def sessions(rows: tuple) -> tuple[tuple[Array, Any], BlockAux]:
            x, carry, turn, valid = rows
            mix = partial(attend, kind, index, carry)
            x, carry, aux = Block(cfg).apply(
                {"params": params}, x, turn, valid, bias, mix, stacked(kind, index)
            )
            return (x, carry), aux

        rows = (*state, turn, positions.valid)
        return sessions(rows) if not at_once else _map_sessions(sessions, rows, at_once)

    if cfg.remat != "nothing":
        products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        policy = products if cfg.remat == "all but products" else None
        layer = jax.checkpoint(layer, static_argnums=0, policy=policy)

    def sliding_layer(state: tuple, xs: tuple) -> tuple[tuple, BlockAux]:
        return layer(SLIDING, state, *xs)

    def group(state: tuple, xs: tuple) -> tuple[tuple, BlockAux]:
        sliding_params, long_params, bias, index = xs
        places = index * sliding + np.arange(sliding)
        state, below = run_stack(sliding_layer, state, (sliding_params, bias[:sliding], places))
        state, above = layer(LONG, state, long_params, bias[sliding], index)
        return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), below, above)

    groups = cfg.layers // cfg.long_every
    grouped_bias = bias.reshape(groups, cfg.long_every, cfg.experts)
    xs = (trunk[SLIDING], trunk[LONG], grouped_bias, np.arange(groups))
    (x, carry), aux = run_stack(group, (positions.x, carry), xs)
    return x, carry, jax.tree.map(lambda a: a.reshape(cfg.layers, *a.shape[2:]), aux)


def _split_off_experts(trunk: Params) -> tuple[Params, dict[str, tuple]]:
    """Stacked layers without their experts' weights, and these as [layers * e, ...]."""
    stacks = {
        kind: tuple(trunk[kind][name].reshape(-1, *trunk[kind][name].shape[-2:]) for name in _FFN)
        for kind in (SLIDING, LONG)
    }
    rest = {
        kind: {name: leaf for name, leaf in trunk[kind].items() if name not in _FFN}
        for kind in stacks
    }
    return {**trunk, **rest}, stacks


def separate_layers(trunk: Params) -> Params:
    """The trunk with the parameters of each layer on their own, for `run_layers` to loop over."""
    sliding = tuple(unstack(group) for group in unstack(trunk[SLIDING]))
    return {**trunk, SLIDING: sliding, LONG: unstack(trunk[LONG])}


def _map_sessions(layer: Callable[[tuple], tuple], rows: tuple, at_once: int) -> tuple:
    """`layer` on one group of sessions after another; its reports are summed."""
    groups = jax.tree.map(lambda a: a.reshape(-1, at_once, *a.shape[1:]), rows)
    state, aux = jax.lax.map(jax.checkpoint(layer), groups)
    state = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), state)
    return state, jax.tree.map(lambda a: jnp.sum(a, axis=0), aux)


def encode(
    config: ModelConfig,
    trunk: Params,
    bias: Array,
    inputs: TurnInputs,
    arrivals: Arrivals | None = None,
) -> tuple[Array, Array, BlockAux]:
    """Runs the layers on n micro-turns from the start of a session at once, teacher-forced.

    On a mesh whose axis `sequence` is longer than one, `inputs` are this device's n of all the
    micro-turns; each layer's keys and values are gathered.

    Args:
      config: The model's.
      trunk: Its parameters.
      bias: float32[l, e].
      inputs: n micro-turns.
      arrivals: Text beside that in `inputs`, at any time; not where `sequence` splits sessions.

    Returns:
      The last layer's positions that are read out, [b, n, audio_positions + 1, d], those of the
      arrivals, [b, m, d], and the layers' reports, of this device's tokens alone.

    Raises:
      ValueError: There are arrivals, and sessions are split.
    """
    cfg = config.transformer
    b, n = inputs.last.shape
    start = jnp.asarray(axis_index(SEQUENCE) * n, jnp.uint32)
    positions = embed(config, trunk, inputs, jnp.full(b, start))
    turns = positions.x.shape[1]
    rank = None
    if arrivals is not None:
        if axis_size(SEQUENCE) > 1:
            raise ValueError(
                f"arrivals: got a mesh with sequence={axis_size(SEQUENCE)}, wanted 1 for sessions "
                "in which text arrives; split over fsdp or expert instead"
            )
        beside = embed_arrivals(config, trunk, arrivals)
        positions = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), positions, beside)
        by_time = jnp.argsort(jnp.where(positions.valid, positions.time, ~jnp.uint32(0)), axis=1)
        rank = jnp.argsort(by_time, axis=1)
        positions = jax.tree.map(partial(_take_positions, by_time), positions)
    valid = gather(positions.valid, SEQUENCE, dim=1)
    order = jnp.cumsum(valid, axis=1, dtype=jnp.uint32) - jnp.uint32(1)
    window = {SLIDING: cfg.window, LONG: cfg.long_window}

    def attend(
        kind: str, index: Array, place: tuple, q: Array, k: Array, v: Array, sink: Array
    ) -> tuple[Array, tuple]:
        order, valid = place
        mine = take_part(order, SEQUENCE, dim=1)
        k, v = gather(k, SEQUENCE, dim=1), gather(v, SEQUENCE, dim=1)
        if k.shape[1] > LONG_INPUT:
            return attention_long(q, k, v, mine, order, valid, window[kind], sink), place
        mask = window_mask(mine, order, valid, window[kind])
        return attention_batch(q, k, v, mask, sink), place

    at_once = 0
    if platform() == "cpu" and axis_size(*AXES) == 1:
        at_once, trunk = math.gcd(b, CPU_SESSIONS), separate_layers(trunk)
    x, _, aux = run_layers(cfg, trunk, bias, positions, attend, (order, valid), at_once)
    if rank is not None:
        x = _take_positions(rank, x)
    return last_positions(config, x[:, :turns], n), x[:, turns:], aux


def _take_positions(order: Array, x: Array) -> Array:
    """[b, t, ...] in another order, int32[b, t]."""
    return jax.vmap(lambda x, order: x[order])(x, order)


def forward(
    config: ModelConfig,
    trunk: Params,
    bias: Array,
    inputs: TurnInputs,
    arrivals: Arrivals | None = None,
) -> Outputs:
    """`encode` and `read_out`: what n calls of the step would compute, teacher-forced."""
    tail, _, aux = encode(config, trunk, bias, inputs, arrivals)
    params = whole(trunk["read_out"], "read_out", config.transformer.dtype)
    return Outputs(*read_out(config, params, tail), aux)
