"""The state of streaming sessions: everything that the next micro-turn needs."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from interaction.config import ModelConfig
from interaction.model.transformer import init_memory, session_specs
from interaction.model.turn_inputs import LastFrame, no_frame, silent_mel, silent_outputs
from interaction.modules import vocoder
from interaction.modules.memory import Cache, Memory
from interaction.ops import mel
from interaction.types import Array, Special


class StreamState(NamedTuple):
    """The complete state of sessions, which are the leading axis of every leaf."""

    key: Array  # uint32[b, 2], random key of the session; constant
    clock: Array  # uint32[b], number of micro-turns taken, wraps
    memory: Memory  # of the transformer's earlier positions
    frame: LastFrame
    audio_tail: Array  # float32[b, window - hop], the user's last samples in [-1, 1]
    user_transcript: Array  # int32[b, audio_positions], of the last micro-turn
    text: Array  # int32[b], the last text-out token
    control: Array  # bool[b], whether `text` is inside a control span, which is not spoken
    tokens: Array  # int32[b, token_window], last spoken tokens, the newest last
    mel: Array  # float32[b, speech_frames, m], log10 mel of the last micro-turn's speech
    vocoder: vocoder.VocoderState


def session_keys(seeds: Array) -> Array:
    """Random keys uint32[b, 2] of int32[b] seeds."""
    return jax.vmap(lambda seed: jax.random.key_data(jax.random.key(seed)))(seeds)


def init_state(config: ModelConfig, keys: Array) -> StreamState:
    """Fresh sessions.

    Args:
      config: Model configuration.
      keys: uint32[b, 2], see `session_keys`.

    Returns:
      The state before the first micro-turn.
    """
    audio, speech = config.audio, config.speech
    b = keys.shape[0]
    silent = silent_outputs(config, b)
    return StreamState(
        key=keys,
        clock=jnp.zeros(b, jnp.uint32),
        memory=init_memory(config, b, config.turn_span),
        frame=no_frame(config, b),
        audio_tail=mel.init_tail(b, audio.user),
        user_transcript=silent.user_transcript,
        text=silent.text,
        control=jnp.zeros(b, bool),
        tokens=jnp.full((b, speech.token_window), Special.SILENT, jnp.int32),
        mel=silent_mel(config, b),
        vocoder=vocoder.init_vocoder_state(b, config.vocoder, audio),
    )


def state_specs(config: ModelConfig) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a state, see `transformer.session_specs`."""
    keys = jnp.zeros((1, 2), jnp.uint32)
    return session_specs(jax.eval_shape(partial(init_state, config), keys))


def select_rows(choose: Array, yes: Array, no: Array) -> Array:
    """Rows of `yes` where `choose` is true, otherwise rows of `no`.

    Args:
      choose: bool[b].
      yes: [b, ...] of any dtype.
      no: [b, ...] of the same shape and dtype.

    Returns:
      [b, ...] of the same dtype.
    """
    return jnp.where(choose.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def select_sessions(
    choose: Array, yes: StreamState, no: StreamState, caches: dict[str, Cache]
) -> StreamState:
    """Sessions of `yes` where bool[b] `choose` is true, otherwise of `no`; caches as given."""
    chosen = jax.tree.map(partial(select_rows, choose), without_caches(yes), without_caches(no))
    return with_caches(chosen, caches)


def without_caches(state: Any) -> Any:  # noqa: ANN401
    """A state, a named tuple with a `memory`, without the large arrays in it."""
    return state._replace(memory=state.memory._replace(caches={}))


def with_caches(state: Any, caches: Any) -> Any:  # noqa: ANN401
    """The opposite of `without_caches`."""
    return state._replace(memory=state.memory._replace(caches=caches))
