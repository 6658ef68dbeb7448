"""One micro-turn, from PCM to PCM: the pure function that everything live is made of.

`step` = `listen` (front end and transformer), sampling of one text token, `speak` (flow head and
vocoder). Rows that are reset, inactive or refused are dealt with at the state's boundary; only the
caches, which are large, are left alone by not being written.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from interaction import control
from interaction.cached import Cache, init_caches, run_cached, session_specs
from interaction.config import ModelConfig
from interaction.model import Outputs, TurnInputs, embed, last_positions, read_out
from interaction.modules import vocoder
from interaction.modules.speech_out import generate_mel
from interaction.ops import dmel, mel, ring, sampling
from interaction.parallel import SEQUENCE, SESSIONS, TENSOR, total
from interaction.sharding import jit_step, whole
from interaction.types import Array, Chunk, Params, Reply, Special

PCM_LIMIT = 2.0  # a sample beyond this is no PCM in [-1, 1] with an overshoot


class StreamState(NamedTuple):
    """Everything a session is; the leading axis of every leaf is the session."""

    key: Array  # uint32[b, 2], the session's random key; never advances
    clock: Array  # uint32[b], micro-turns taken, wraps
    rings: ring.RingClock
    caches: dict[str, Cache]
    audio_tail: Array  # float32[b, window - user_hop], the user's last samples
    heard: Array  # int32[b, audio_positions], transcription of the last micro-turn
    text: Array  # int32[b], the last text-out token
    control: Array  # bool[b], whether it stands in a span that is not said aloud
    tokens: Array  # int32[b, token_window], last spoken tokens, the newest last
    mel: Array  # float32[b, speech_frames, m], log10 mel of the last micro-turn's speech
    vocoder: vocoder.VocoderState


def session_keys(seeds: Array) -> Array:
    """Random keys uint32[b, 2] of int32[b] seeds."""
    return jax.vmap(lambda seed: jax.random.key_data(jax.random.key(seed)))(seeds)


def init_state(config: ModelConfig, keys: Array) -> StreamState:
    """Fresh sessions.

    Args:
      config: The model's.
      keys: uint32[b, 2], see `session_keys`.

    Returns:
      The state before the first micro-turn.
    """
    audio, speech = config.audio, config.speech
    b = keys.shape[0]
    rings, caches = init_caches(config.transformer, b, config.turn_span)
    return StreamState(
        key=keys,
        clock=jnp.zeros(b, jnp.uint32),
        rings=rings,
        caches=caches,
        audio_tail=mel.init_tail(b, audio.user_hop, audio),
        heard=jnp.full((b, config.audio_positions), Special.NONE, jnp.int32),
        text=jnp.full(b, Special.SILENT, jnp.int32),
        control=jnp.zeros(b, bool),
        tokens=jnp.full((b, speech.token_window), Special.SILENT, jnp.int32),
        mel=jnp.full((b, audio.speech_frames, audio.mels), speech.mel_floor, jnp.float32),
        vocoder=vocoder.init_vocoder_state(b, config.vocoder, audio),
    )


def listen(
    config: ModelConfig, params: Params, state: StreamState, chunk: Chunk
) -> tuple[StreamState, Outputs]:
    """Hears one micro-turn: front end and one pass of the transformer.

    Args:
      config: The model's.
      params: The model's.
      state: Before the micro-turn.
      chunk: Its inputs; `reset` is not looked at. A row that is not `active` keeps its rings and
        caches; the rest of its state moves on.

    Returns:
      The state with caches, tail, transcription and clock moved on, and outputs with n = 1.
    """
    cfg, audio = config.transformer, config.audio
    with jax.named_scope("front_end"):
        tail, user = mel.log_mel_stream(state.audio_tail, chunk.audio, audio.user_hop, audio)
        stride = audio.user_hop // audio.speech_hop
        inputs = TurnInputs(
            user=dmel.dmel_bins(user, audio)[:, None],
            own=dmel.dmel_bins(state.mel[:, stride - 1 :: stride], audio)[:, None],
            hear_own=jnp.full((chunk.audio.shape[0], 1), float(config.hears_itself)),
            heard=state.heard[:, None],
            last=state.text[:, None],
            text=None if chunk.text is None else chunk.text[:, None],
            frame=None if chunk.frame is None else chunk.frame[:, None],
            has_frame=None if chunk.has_frame is None else chunk.has_frame[:, None],
        )
        positions = embed(config, params["trunk"], inputs, state.clock)
        if chunk.active is not None:
            positions = positions._replace(valid=positions.valid & chunk.active[:, None])
    x, rings, caches, aux = run_cached(cfg, params, positions, state.rings, state.caches)
    weights = whole(params["trunk"]["read_out"], "read_out", cfg.dtype)
    outputs = Outputs(*read_out(config, weights, last_positions(config, x, 1)), aux)
    state = state._replace(
        clock=state.clock + jnp.uint32(1),
        rings=rings,
        caches=caches,
        audio_tail=tail,
        heard=jnp.argmax(outputs.heard_logits[:, 0], axis=-1).astype(jnp.int32),
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
    """Says one micro-turn: flow head and vocoder.

    The vocoder lags its mel by `delay_frames`, so does the gate that makes `silent` exact silence.
    After one whole silent micro-turn nothing of a row's speech is left to be heard: its vocoder
    starts afresh. A batch in which no row needs the flow head or the vocoder does not run them.

    Args:
      config: The model's.
      params: The model's.
      state: After `listen`.
      hidden: [b, d], from `listen`.
      token: int32[b], what of the text-out token is spoken.
      keys: Typed PRNG keys [b], of the flow's noise.
      kept: bool[b], rows whose outcome counts; the others may come out as anything.

    Returns:
      The state with tokens, mel and vocoder moved on, and PCM float32[b, turn_samples].
    """
    speech = config.speech
    before = state.tokens[:, -1] == Special.SILENT
    silent = (token == Special.SILENT) | ~kept
    tokens = jnp.concatenate([state.tokens[:, 1:], token[:, None]], axis=1)
    idle = (before & silent) | ~kept
    fresh = vocoder.init_vocoder_state(len(token), config.vocoder, config.audio)
    # Gathered here: whether the flow head runs differs from device to device.
    condition = whole(params["speech"]["condition"], "condition", config.transformer.dtype)
    floor = jnp.full_like(state.mel, speech.mel_floor)
    nothing = jnp.zeros((len(token), config.audio.turn_samples))

    def say() -> Array:
        prefix = state.mel[:, -speech.prefix_frames :]
        noise = sampling.normal(keys, floor.shape[1:])
        head = {**params["speech"], "condition": condition}
        frames = generate_mel(config, head, hidden, tokens, prefix, noise)
        return select_rows(silent, floor, frames)

    def render(frames: Array) -> tuple[vocoder.VocoderState, Array]:
        after, pcm = vocoder.vocoder_step(
            params["vocoder"], state.vocoder, frames, config.vocoder, config.audio
        )
        return jax.tree.map(partial(select_rows, idle), fresh, after), pcm

    def rest(frames: Array) -> tuple[vocoder.VocoderState, Array]:
        return fresh, nothing

    with jax.named_scope("flow"):
        frames = jax.lax.cond(jnp.all(silent), lambda: floor, say)
    with jax.named_scope("vocoder"):
        vocoder_state, pcm = jax.lax.cond(jnp.all(idle), rest, render, frames)
        lag = config.vocoder.delay_frames * config.audio.speech_hop
        late = jnp.arange(config.audio.turn_samples) < lag
        quiet = jnp.where(late, before[:, None], silent[:, None])
        pcm = jnp.clip(jnp.where(quiet, 0.0, pcm), -1.0, 1.0)
    return state._replace(tokens=tokens, mel=frames, vocoder=vocoder_state), pcm


def acceptable(config: ModelConfig, chunk: Chunk) -> Array:
    """Rows with usable numbers, bool[b]: PCM of a sane size, known tokens, pixels in [0, 1]."""
    ok = jnp.all(jnp.abs(chunk.audio) <= PCM_LIMIT, axis=1)  # false for NaN as well
    if chunk.text is not None:
        ok &= jnp.all((chunk.text >= 0) & (chunk.text < config.vocab), axis=1)
    if chunk.frame is not None:
        finite = jnp.all((chunk.frame >= 0) & (chunk.frame <= 1), axis=(1, 2, 3))
        ok &= finite | ~jnp.asarray(chunk.has_frame)
    return ok


def blank_rows(chunk: Chunk, keep: Array) -> Chunk:
    """Zeros the inputs of rows that are not kept, so that no bad number enters a computation."""

    def blank(leaf: Array | None) -> Array | None:
        return None if leaf is None else select_rows(keep, leaf, jnp.zeros_like(leaf))

    audio = select_rows(keep, chunk.audio, jnp.zeros_like(chunk.audio))
    return chunk._replace(audio=audio, text=blank(chunk.text), frame=blank(chunk.frame))


def state_specs(config: ModelConfig) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a state, see `cached.session_specs`."""
    keys = jnp.zeros((1, 2), jnp.uint32)
    return session_specs(jax.eval_shape(partial(init_state, config), keys))


def make_step(
    config: ModelConfig,
    mesh: Mesh | AbstractMesh,
    specs: Any,  # noqa: ANN401
    unpack: Callable[[Any], Params] = lambda params: params,
) -> Callable[[Any, StreamState, Chunk], tuple[StreamState, Reply]]:
    """The jitted step on a mesh: (params, state, chunk) -> (state, reply); the state is donated.

    Args:
      config: The model's.
      mesh: With all axes of `parallel.AXES`; its `data`, `fsdp` and `expert` devices share out the
        sessions.
      specs: `PartitionSpec`s of params, `sharding.param_specs` of a model's.
      unpack: Makes a model's parameters of params, on each device.

    Returns:
      The step, see `step`.
    """

    def body(params: Any, state: StreamState, chunk: Chunk) -> tuple[StreamState, Reply]:  # noqa: ANN401
        return step(config, unpack(params), state, chunk)

    sessions, states = PartitionSpec(SESSIONS), state_specs(config)
    return jit_step(body, mesh, (specs, states, sessions), (states, sessions))


def select_rows(choose: Array, yes: Array, no: Array) -> Array:
    """Row by row of the leading axis, `yes` where bool[b] `choose`, otherwise `no`."""
    return jnp.where(choose.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def step(
    config: ModelConfig, params: Params, state: StreamState, chunk: Chunk
) -> tuple[StreamState, Reply]:
    """One micro-turn of every session; jit it with `config` bound and `state` donated.

    Args:
      config: The model's.
      params: The model's: trunk, router_bias, speech, vocoder.
      state: Of b sessions.
      chunk: Inputs of b sessions.

    Returns:
      The new state, and the reply. A row that is inactive or refused keeps its state to the bit,
      even if it was to be reset, and replies silence.
    """
    # The devices of a session may get it from several processes: what one refuses, all refuse.
    kept = total((~acceptable(config, chunk)).astype(jnp.int32), SEQUENCE, TENSOR) == 0
    refused = ~kept
    if chunk.active is not None:
        kept, refused = kept & chunk.active, refused & chunk.active
    chunk = blank_rows(chunk, kept)._replace(active=kept)
    start = state
    if chunk.reset is not None:
        fresh, again = init_state(config, state.key), chunk.reset & kept
        start = jax.tree.map(partial(select_rows, again), fresh, state)
    keys = jax.vmap(jax.random.wrap_key_data)(start.key)
    heard_state, outputs = listen(config, params, start, chunk)
    with jax.named_scope("sample"):
        text_keys = sampling.turn_keys(keys, start.clock, sampling.TEXT)
        token = sampling.sample_tokens(
            text_keys, outputs.text_logits[:, 0], config.text_temperature
        )
        flow_keys = sampling.turn_keys(keys, start.clock, sampling.FLOW)
    aloud, inside = control.spoken_token(token, start.control)
    end, pcm = speak(config, params, heard_state, outputs.hidden[:, 0], aloud, flow_keys, kept)
    end = end._replace(text=token, control=inside)
    # The caches are not selected: `listen` wrote what is kept, and they are what is large.
    small, before = (x._replace(caches={}) for x in (end, start))
    small = jax.tree.map(partial(select_rows, kept), small, before)
    end = small._replace(caches=end.caches)
    reply = Reply(
        audio=select_rows(kept, pcm, jnp.zeros_like(pcm)),
        text=jnp.where(kept, token, Special.SILENT),
        heard=jnp.where(kept[:, None], heard_state.heard, Special.NONE),
        refused=refused,
    )
    return end, reply
