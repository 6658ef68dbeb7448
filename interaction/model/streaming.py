"""One micro-turn from PCM to PCM: the pure function behind every live session.

`step` is `listen` (front end and transformer), sampling of one text token, and `speak` (flow head
and vocoder). Rows that are reset, inactive or refused are selected before and after these. No
selection takes the large caches: nothing is written to those of inactive and refused rows, and the
clock of a reset row hides what its slots still hold.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from interaction.config import ModelConfig
from interaction.distributed.collectives import SEQUENCE, SESSIONS, TENSOR, total
from interaction.distributed.sharding import cast_params, gather_and_cast, jit_step
from interaction.model import control_tokens
from interaction.model.heads import Outputs, apply_heads
from interaction.model.positions import embed, take_positions
from interaction.model.session_state import (
    StreamState,
    init_state,
    select_rows,
    select_sessions,
    session_keys,
    state_specs,
)
from interaction.model.transformer import run_cached
from interaction.model.turn_inputs import TurnOutputs, assemble, frame_pairs
from interaction.modules import vocoder
from interaction.modules.speech_out import generate_mel
from interaction.ops import mel, sampling
from interaction.types import Array, Chunk, Params, Reply, Special

PCM_LIMIT = 2.0  # largest magnitude of a sample: PCM in [-1, 1] may overshoot up to this


def listen(
    config: ModelConfig, params: Params, state: StreamState, chunk: Chunk
) -> tuple[StreamState, Outputs]:
    """Takes the inputs of one micro-turn: front end and one pass of the transformer.

    Args:
      config: Model configuration.
      params: Parameters of the model.
      state: State before the micro-turn.
      chunk: Inputs; `reset` is ignored. A row that is not `active` keeps its caches, but not the
        rest of its state.

    Returns:
      The state with new memory, last frame, audio tail, user transcript and clock, and outputs with
      n = 1.
    """
    cfg, audio = config.transformer, config.audio
    with jax.named_scope("front_end"):
        tail, user = mel.log_mel_stream(state.audio_tail, chunk.audio, audio.user, audio)
        last, pairs, has_frame = state.frame, None, None
        if chunk.frame is not None and chunk.has_frame is not None:
            has_frame = chunk.has_frame[:, None]
            last, pairs = frame_pairs(last, chunk.frame[:, None], has_frame)
        inputs = assemble(
            config,
            user[:, None],
            TurnOutputs(state.user_transcript, state.text, state.mel),
            None,
            self_audio_gain=jnp.full((chunk.audio.shape[0], 1), float(config.self_audio)),
            text=None if chunk.text is None else chunk.text[:, None],
            frame=pairs,
            has_frame=has_frame,
        )
        positions = embed(config, params["backbone"], inputs, state.clock, active=chunk.active)
    x, memory, aux = run_cached(config, params, positions, state.memory)
    weights = gather_and_cast(params["backbone"]["heads"], "heads", cfg.dtype)
    outputs = Outputs(*apply_heads(config, weights, take_positions(x, positions.ends)), aux)
    state = state._replace(
        clock=state.clock + jnp.uint32(1),
        memory=memory,
        frame=last,
        audio_tail=tail,
        user_transcript=jnp.argmax(outputs.transcript_logits[:, 0], axis=-1).astype(jnp.int32),
    )
    return state, outputs


def speak(
    config: ModelConfig,
    params: Params,
    state: StreamState,
    hidden: Array,
    token: Array,
    keys: Array,
    kept: Array,
) -> tuple[StreamState, Array]:
    """Generates the speech of one micro-turn: flow head and vocoder.

    The vocoder lags its mel by `delay_frames`, and so does the gate that makes `silent` exact
    silence. After one complete silent micro-turn all of a row's speech was played, and its vocoder
    starts from a fresh state. The flow head and the vocoder run only if some row needs them.

    Args:
      config: Model configuration.
      params: Parameters of the model.
      state: State after `listen`.
      hidden: float[b, d], hidden state of the text-out position, from `listen`.
      token: int32[b], the spoken token, see `control_tokens.spoken_tokens`.
      keys: Typed PRNG keys [b] of the flow's noise.
      kept: bool[b], rows whose result is used; the results of other rows are unspecified.

    Returns:
      The state with new tokens, mel and vocoder state, and PCM float32[b, turn_samples] in [-1, 1].
    """
    before = state.tokens[:, -1] == Special.SILENT
    silent = (token == Special.SILENT) | ~kept
    tokens = control_tokens.token_windows(state.tokens, token[:, None])[:, 0]
    idle = (before & silent) | ~kept
    fresh = vocoder.init_vocoder_state(len(token), config.vocoder, config.audio)
    # Gathered here, since the flow head may run on some devices only, where a gather would wait.
    head = {
        part: gather_and_cast(params["speech"][part], part, config.transformer.dtype)
        for part in ("condition", "flow")
    }
    voice = cast_params({"vocoder": params["vocoder"]}, config.transformer.dtype)["vocoder"]
    floor = jnp.full_like(state.mel, config.speech.mel_floor)
    nothing = jnp.zeros((len(token), config.audio.turn_samples))

    def say() -> Array:
        return speech_frames(config, head, state.mel, tokens, hidden, keys)

    def render(frames: Array) -> tuple[vocoder.VocoderState, Array]:
        after, pcm = vocoder.vocoder_step(
            voice, state.vocoder, frames, config.vocoder, config.audio
        )
        return jax.tree.map(partial(select_rows, idle), fresh, after), pcm

    def rest(frames: Array) -> tuple[vocoder.VocoderState, Array]:
        return fresh, nothing

    with jax.named_scope("flow"):
        frames = jax.lax.cond(
            jnp.all(silent), lambda: floor, lambda: select_rows(silent, floor, say())
        )
    with jax.named_scope("vocoder"):
        vocoder_state, pcm = jax.lax.cond(jnp.all(idle), rest, render, frames)
        lag = config.vocoder.delay_frames * config.audio.speech.hop
        late = jnp.arange(config.audio.turn_samples) < lag
        quiet = jnp.where(late, before[:, None], silent[:, None])
        pcm = jnp.clip(jnp.where(quiet, 0.0, pcm), -1.0, 1.0)
    return state._replace(tokens=tokens, mel=frames, vocoder=vocoder_state), pcm


def speech_frames(
    config: ModelConfig, head: Params, before: Array, tokens: Array, hidden: Array, keys: Array
) -> Array:
    """Mel frames of one micro-turn with speech; the noise of a session is drawn from its key.

    Args:
      config: Model configuration.
      head: Parameters of the flow head, condition and flow, from `gather_and_cast`.
      before: float32[b, speech_frames, m], log10 mel of the micro-turn before.
      tokens: int32[b, token_window], last spoken tokens, the newest last.
      hidden: float[b, d], hidden state of the text-out position.
      keys: Typed PRNG keys [b].

    Returns:
      float32[b, speech_frames, m], log10 mel.
    """
    noise = sampling.normal(keys, before.shape[1:])
    prefix = before[:, -config.speech.prefix_frames :]
    return generate_mel(config, head, hidden, tokens, prefix, noise)


def acceptable(config: ModelConfig, chunk: Chunk) -> Array:
    """Rows bool[b] with usable inputs: PCM within PCM_LIMIT, known tokens, pixels in [0, 1]."""
    ok = jnp.all(jnp.abs(chunk.audio) <= PCM_LIMIT, axis=1)  # false for NaN as well
    if chunk.text is not None:
        ok &= jnp.all((chunk.text >= 0) & (chunk.text < config.vocab), axis=1)
    if chunk.frame is not None:
        finite = jnp.all((chunk.frame >= 0) & (chunk.frame <= 1), axis=(1, 2, 3))
        ok &= finite | ~jnp.asarray(chunk.has_frame)
    return ok


def blank_rows(chunk: Chunk, keep: Array) -> Chunk:
    """Sets inputs to zero except in bool[b] `keep` rows, so that NaN enters no computation."""

    def blank(leaf: Array | None) -> Array | None:
        return None if leaf is None else select_rows(keep, leaf, jnp.zeros_like(leaf))

    audio = select_rows(keep, chunk.audio, jnp.zeros_like(chunk.audio))
    return chunk._replace(audio=audio, text=blank(chunk.text), frame=blank(chunk.frame))


def make_step(
    config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    specs: Any,  # noqa: ANN401
    unpack: Callable[[Any], Params] = lambda params: params,
) -> Callable[[Any, StreamState, Chunk], tuple[StreamState, Reply]]:
    """The jitted step on a mesh: (params, state, chunk) -> (state, reply); the state is donated.

    Args:
      config: Model configuration.
      mesh: A mesh with all axes of `collectives.AXES`; sessions are split over its axes `data`,
        `fsdp` and `expert`.
      specs: `PartitionSpec`s of `params`, for the parameters of a model `sharding.param_specs`.
      unpack: Function that makes the model's parameters from `params`, on each device.

    Returns:
      The step, see `step`.
    """

    def body(params: Any, state: StreamState, chunk: Chunk) -> tuple[StreamState, Reply]:  # noqa: ANN401
        return step(config, unpack(params), state, chunk)

    sessions, states = PartitionSpec(SESSIONS), state_specs(config)
    return jit_step(body, mesh, (specs, states, sessions), (states, sessions))


def step(
    config: ModelConfig, params: Params, state: StreamState, chunk: Chunk
) -> tuple[StreamState, Reply]:
    """One micro-turn of every session; jit it with `config` bound and `state` donated.

    Args:
      config: Model configuration.
      params: Parameters of the model: backbone, router_bias, speech, vocoder.
      state: State of b sessions.
      chunk: Inputs of b sessions.

    Returns:
      The new state, and the reply. A row that is inactive or refused keeps its state bit for bit,
      even with `reset`, and its reply is silence.
    """
    # A session may be split over devices of several processes: if one refuses it, all do.
    kept = total((~acceptable(config, chunk)).astype(jnp.int32), SEQUENCE, TENSOR) == 0
    refused = ~kept
    if chunk.active is not None:
        kept, refused = kept & chunk.active, refused & chunk.active
    chunk = blank_rows(chunk, kept)._replace(active=kept)
    start = state
    if chunk.reset is not None and chunk.seed is not None:
        fresh, again = init_state(config, session_keys(chunk.seed)), chunk.reset & kept
        start = select_sessions(again, fresh, state, caches=state.memory.caches)
    keys = jax.vmap(jax.random.wrap_key_data)(start.key)
    listened, outputs = listen(config, params, start, chunk)
    with jax.named_scope("sample"):
        text_keys = sampling.turn_keys(keys, start.clock, sampling.TEXT)
        token = sampling.sample_tokens(
            text_keys, outputs.text_logits[:, 0], config.text_temperature
        )
        flow_keys = sampling.turn_keys(keys, start.clock, sampling.FLOW)
    aloud, inside = control_tokens.spoken_tokens(token[:, None], start.control)
    end, pcm = speak(config, params, listened, outputs.hidden[:, 0], aloud[:, 0], flow_keys, kept)
    end = end._replace(text=token, control=inside)
    end = select_sessions(kept, end, start, caches=end.memory.caches)
    reply = Reply(
        audio=select_rows(kept, pcm, jnp.zeros_like(pcm)),
        text=jnp.where(kept, token, Special.SILENT),
        user_transcript=jnp.where(kept[:, None], listened.user_transcript, Special.NONE),
        refused=refused,
    )
    return end, reply
