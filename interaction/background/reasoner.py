"""The background model's functions: prefill the record of a session, fork its state, read tokens.

The reasoner prefills the micro-turns of a live conversation, a few at a time. Its ring caches then
hold as much of the conversation as its windows reach back. A fork is a copy of that state for one
delegation. It reads text at one token per micro-turn: the request, reasoning tokens, and results of
tools. Forks are dropped at their end; the record continues beside them.

The reasoner reads the live model's text and not its audio.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from interaction.config import PREFILL_TURNS, ModelConfig
from interaction.distributed.collectives import SESSIONS
from interaction.distributed.sharding import gather_and_cast, jit_step, place
from interaction.model.heads import text_head
from interaction.model.positions import embed, embed_arrivals
from interaction.model.transformer import init_memory, run_cached, session_specs
from interaction.model.turn_inputs import (
    Arrivals,
    LastFrame,
    TurnOutputs,
    assemble,
    frame_pairs,
    no_frame,
    silent_outputs,
)
from interaction.modules.memory import Memory
from interaction.ops import mel
from interaction.types import Array, Params


class ReasonerState(NamedTuple):
    """State of sessions, of their records or of forks; the leading axis of every leaf is b."""

    clock: Array  # uint32[b], micro-turns and tokens of a fork so far; wraps
    memory: Memory  # of the transformer's earlier positions
    frame: LastFrame
    audio_tail: Array  # float32[b, window - hop], the user's last samples, PCM
    user_transcript: Array  # int32[b, audio_positions], transcription of the last micro-turn
    text: Array  # int32[b], the live model's last text-out token


class MicroTurns(NamedTuple):
    """The next micro-turns of a record, n <= PREFILL_TURNS; those from `count` on are not read."""

    audio: Array  # float32[b, n, turn_samples], the user's PCM in [-1, 1]
    user_transcript: Array  # int32[b, n, audio_positions], its transcription by the live model
    text: Array  # int32[b, n], the live model's text-out tokens
    arrived: Array  # int32[b, n, text_slots], PAD where empty
    count: Array  # int32[b], how many of the n micro-turns exist
    frame: Array | None = None  # float32[b, n, size, size, 3] in [0, 1]
    has_frame: Array | None = None  # bool[b, n], required with `frame`


def init_state(config: ModelConfig, sessions: int) -> ReasonerState:
    """The state of sessions before their first micro-turn."""
    silent = silent_outputs(config, sessions)
    return ReasonerState(
        clock=jnp.zeros(sessions, jnp.uint32),
        memory=init_memory(config, sessions, PREFILL_TURNS * config.turn_span),
        frame=no_frame(config, sessions),
        audio_tail=mel.init_tail(sessions, config.audio.user),
        user_transcript=silent.user_transcript,
        text=silent.text,
    )


def prefill(
    config: ModelConfig, params: Params, state: ReasonerState, turns: MicroTurns
) -> ReasonerState:
    """Reads the next micro-turns of a record.

    Args:
      config: Model configuration.
      params: Parameters of the model: backbone, router_bias.
      state: State before the micro-turns.
      turns: At most PREFILL_TURNS micro-turns of each session.

    Returns:
      The state after the micro-turns.

    Raises:
      ValueError: There are more micro-turns than the rings have room for.
    """
    b, n = turns.text.shape
    if n > PREFILL_TURNS:
        raise ValueError(
            f"turns: got {n}, wanted at most {PREFILL_TURNS} at once; call again for more"
        )
    audio = config.audio
    with jax.named_scope("front_end"):
        pcm = turns.audio.reshape(b, -1)
        _, user = mel.log_mel_stream(state.audio_tail, pcm, audio.user, audio)
        before, exists = TurnOutputs(state.user_transcript, state.text, None), jnp.arange(n)
        exists, frame, pairs = exists < turns.count[:, None], state.frame, None
        if turns.frame is not None and turns.has_frame is not None:
            frame, pairs = frame_pairs(frame, turns.frame, turns.has_frame & exists)
        inputs = assemble(
            config,
            user.reshape(b, n, audio.user_frames, audio.mels),
            before,
            TurnOutputs(turns.user_transcript, turns.text, None),
            self_audio_gain=jnp.zeros((b, n)),
            text=turns.arrived,
            frame=pairs,
            has_frame=turns.has_frame,
            exists=exists,
        )
        positions = embed(config, params["backbone"], inputs, state.clock)
    _, memory, _ = run_cached(config, params, positions, state.memory)

    def newest(row: Array, end: Array, size: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(row, end, size)

    samples = jnp.concatenate([state.audio_tail, pcm], axis=1)
    cut = jax.vmap(partial(newest, size=state.audio_tail.shape[1]))
    last = jax.vmap(lambda first, row, count: jnp.concatenate([first[None], row])[count])
    return ReasonerState(
        clock=state.clock + turns.count.astype(jnp.uint32),
        memory=memory,
        frame=frame,
        audio_tail=cut(samples, turns.count * audio.turn_samples),
        user_transcript=last(state.user_transcript, turns.user_transcript, turns.count),
        text=last(state.text, turns.text, turns.count),
    )


def read(
    config: ModelConfig, params: Params, state: ReasonerState, tokens: Array
) -> tuple[ReasonerState, Array]:
    """Reads tokens of a fork and predicts the next one.

    Args:
      config: Model configuration.
      params: Parameters of the model: backbone, router_bias.
      state: State of the forks, or of the records, which then become forks.
      tokens: int32[b, m], PAD at the end of rows that have fewer.

    Returns:
      The state after the tokens, and the logits of the next token, float32[b, v]; those of a row
      without tokens are meaningless.

    Raises:
      ValueError: There are more tokens than the rings have room for.
    """
    m, span = tokens.shape[1], config.turn_span
    if m > PREFILL_TURNS * span:
        raise ValueError(
            f"tokens: got {m}, wanted at most {PREFILL_TURNS * span} at once; call again"
        )
    place = state.clock[:, None] + jnp.arange(m, dtype=jnp.uint32)
    arrivals = Arrivals(tokens, place * jnp.uint32(span))
    positions = embed_arrivals(config, params["backbone"], arrivals)
    x, memory, _ = run_cached(config, params, positions, state.memory)
    count = jnp.sum(positions.valid, axis=1, dtype=jnp.int32)
    newest = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    weights = gather_and_cast(params["backbone"]["heads"], "heads", config.transformer.dtype)
    state = state._replace(clock=state.clock + count.astype(jnp.uint32), memory=memory)
    return state, text_head(config, weights, newest)[:, 0]


class Functions(NamedTuple):
    """The reasoner's functions, jitted; each shape of inputs is compiled once.

    `prefill` and `read` donate their state.
    """

    init: Callable[[int], ReasonerState]  # sessions -> state
    prefill: Callable[..., ReasonerState]  # (params, state, turns) -> state
    read: Callable[..., tuple[ReasonerState, Array]]  # (params, state, tokens) -> state, int32[b]
    fork: Callable[[ReasonerState], ReasonerState]  # state -> its copy


def state_specs(config: ModelConfig) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a state, see `transformer.session_specs`."""
    return session_specs(jax.eval_shape(partial(init_state, config, 1)))


def make_reasoner(
    config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    specs: Any,  # noqa: ANN401
    unpack: Callable[[Any], Params] = lambda params: params,
) -> Functions:
    """Makes the jitted functions on a mesh.

    Args:
      config: Model configuration.
      mesh: Devices, with all axes of `collectives.AXES`; `data`, `fsdp` and `expert` split the
        sessions.
      specs: `PartitionSpec`s of the params, for example from `sharding.param_specs`.
      unpack: Makes the model's parameters from the params, on each device.

    Returns:
      The functions; `read` returns the likeliest next token.
    """
    sessions, states = PartitionSpec(SESSIONS), state_specs(config)
    inputs, placed = (specs, states, sessions), place(mesh, states)

    def prefill_turns(params: Any, state: ReasonerState, turns: MicroTurns) -> ReasonerState:  # noqa: ANN401
        return prefill(config, unpack(params), state, turns)

    def read_tokens(params: Any, state: ReasonerState, tokens: Array) -> tuple:  # noqa: ANN401
        state, logits = read(config, unpack(params), state, tokens)
        return state, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return Functions(
        init=jax.jit(partial(init_state, config), static_argnums=0, out_shardings=placed),
        prefill=jit_step(prefill_turns, mesh, inputs, states),
        read=jit_step(read_tokens, mesh, inputs, (states, sessions)),
        fork=jax.jit(
            lambda state: jax.tree.map(jnp.copy, state),
            in_shardings=(placed,),
            out_shardings=placed,
        ),
    )
