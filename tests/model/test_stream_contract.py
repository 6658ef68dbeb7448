"""All streaming parts, and the complete transformer, under the streaming contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction.model import session_state, streaming
from interaction.model.heads import Outputs
from interaction.model.sequence import forward
from interaction.model.turn_inputs import Arrivals, TurnInputs, frame_pairs, no_frame
from interaction.modules import vocoder
from interaction.modules.speech_out import generate_mel
from interaction.ops import dmel, mel
from interaction.training import conversation_loss, features, speech_loss
from interaction.types import Array, Chunk, Params, Special
from tests.contract import StreamPart, verify_stream_contract
from tests.support import FINE, random_params

CONFIG = FINE
RNG = np.random.default_rng(0)


def test_front_end() -> None:
    spectrum = CONFIG.audio.user
    hop = spectrum.hop

    def step(params: dict, tail: Array, pcm: Array) -> tuple[Array, Array]:
        tail, frames = mel.log_mel_stream(tail, pcm.reshape(3, -1), spectrum, CONFIG.audio)
        return tail, frames

    pcm = jnp.asarray(0.1 * RNG.standard_normal((3, 10, hop)), jnp.float32)
    part = StreamPart(lambda b: mel.init_tail(b, spectrum), step, {}, pcm)
    verify_stream_contract(part, 1e-6)  # measured: 0


def test_vocoder() -> None:
    def step(params: dict, state: vocoder.VocoderState, frames: Array) -> tuple:
        state, pcm = vocoder.vocoder_step(params, state, frames, CONFIG.vocoder, CONFIG.audio)
        return state, pcm.reshape(3, frames.shape[1], -1)

    frames = jnp.asarray(RNG.standard_normal((3, 10, CONFIG.audio.mels)) - 2.0, jnp.float32)
    params = random_params(CONFIG)["vocoder"]
    part = StreamPart(
        lambda b: vocoder.init_vocoder_state(b, CONFIG.vocoder, CONFIG.audio), step, params, frames
    )
    verify_stream_contract(part, 1e-4)  # measured: 0, gradients 5e-10


def test_flow_head() -> None:
    """Single micro-turns against a scan over micro-turns: the prefix is the only state."""
    speech, audio = CONFIG.speech, CONFIG.audio

    def step(params: dict, prefix: Array, inputs: tuple) -> tuple[Array, Array]:
        def turn(prefix: Array, one: tuple) -> tuple[Array, Array]:
            frames = generate_mel(CONFIG, params, *one[:2], prefix, one[2])
            return frames[:, -speech.prefix_frames :], frames

        turns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), inputs)
        prefix, frames = jax.lax.scan(turn, prefix, turns)
        return prefix, jnp.moveaxis(frames, 0, 1)

    hidden = RNG.standard_normal((3, 10, CONFIG.transformer.dim)).astype(np.float32)
    tokens = RNG.integers(0, CONFIG.vocab, (3, 10, speech.token_window))
    noise = RNG.standard_normal((3, 10, audio.speech_frames, audio.mels)).astype(np.float32)
    shape = (speech.prefix_frames, audio.mels)
    part = StreamPart(
        lambda b: jnp.full((b, *shape), speech.mel_floor, jnp.float32),
        step,
        random_params(CONFIG)["speech"],
        jax.device_put((hidden, tokens, noise)),
    )
    verify_stream_contract(part, 1e-5, sizes=(1, 5))  # measured: 2.9802322387695312e-08


def _random_turns(sessions: int, turns: int) -> tuple:
    """PCM, inputs of `forward` (with text and frames in some micro-turns), text out, speech mel."""
    audio = CONFIG.audio
    pcm = (0.1 * RNG.standard_normal((sessions, turns * audio.turn_samples))).astype(np.float32)
    text = np.where(
        RNG.random((sessions, turns)) < 0.5,
        Special.SILENT,
        RNG.integers(Special.COUNT, CONFIG.vocab, (sessions, turns)),
    ).astype(np.int32)
    speech = RNG.standard_normal((sessions, turns, audio.speech_frames, audio.mels)) - 2.5
    speech = np.where(text[..., None, None] == Special.SILENT, -5.0, speech).astype(np.float32)
    tail = mel.init_tail(sessions, audio.user)
    _, frames = mel.log_mel_stream(tail, jnp.asarray(pcm), audio.user, audio)
    arrived = RNG.integers(0, CONFIG.vocab, (sessions, turns, CONFIG.text_slots))
    arrived = np.where(RNG.random(arrived.shape) < 0.7, Special.PAD, arrived).astype(np.int32)
    size = CONFIG.frame_size
    # Every second frame of the micro-turn before, in 16 levels of 0.6 from -7 on.
    before = np.concatenate([np.full_like(speech[:, :1], -5.0), speech[:, :-1]], axis=1)
    user_transcript = RNG.integers(0, CONFIG.vocab, (sessions, turns, CONFIG.audio_positions))
    raw = jnp.asarray(RNG.random((sessions, turns, size, size, 3)), jnp.float32)
    has_frame = jnp.asarray(RNG.random((sessions, turns)) < 0.4)
    inputs = TurnInputs(
        user=dmel.dmel_bins(frames, audio).reshape(sessions, turns, -1, audio.mels),
        self_audio=jnp.asarray(np.clip(np.round((before[:, :, 1::2] + 7) / 0.6), 0, 15), jnp.int32),
        self_audio_gain=jnp.ones((sessions, turns)),
        user_transcript=features.delayed(jnp.asarray(user_transcript, jnp.int32), Special.NONE),
        last=features.delayed(jnp.asarray(text), Special.SILENT),
        text=jnp.asarray(arrived),
        frame=frame_pairs(no_frame(CONFIG, sessions), raw, has_frame)[1],
        has_frame=has_frame,
    )
    return pcm, inputs, text, speech


TURNS = 48  # more positions than the rings of the tiny preset have slots


@pytest.fixture(scope="module")
def turns() -> tuple:
    return _random_turns(2, TURNS)


@pytest.mark.optimised
def test_forward_equals_steps(turns: tuple) -> None:
    """Logits, user transcript, speech condition and all losses equal those of the steps."""
    pcm, inputs, text, speech = turns
    params = random_params(CONFIG)
    full = jax.jit(forward, static_argnums=0)(
        CONFIG, params["backbone"], params["router_bias"], inputs
    )
    listen = jax.jit(streaming.listen, static_argnums=0)
    state = session_state.init_state(CONFIG, session_state.session_keys(jnp.arange(2)))
    samples = CONFIG.audio.turn_samples
    stepped = []
    for n in range(TURNS):
        chunk = Chunk(
            pcm[:, n * samples : (n + 1) * samples],
            inputs.text[:, n],
            inputs.frame[:, n, 1],
            inputs.has_frame[:, n],
        )
        state = state._replace(user_transcript=inputs.user_transcript[:, n])
        state, out = listen(CONFIG, params, state, chunk)
        for name in ("text_logits", "transcript_logits", "hidden"):
            got, wanted = getattr(out, name)[:, 0], getattr(full, name)[:, n]
            # measured: 3.6e-6
            np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=f"{name}, micro-turn {n}")
        stepped.append(out)
        np.testing.assert_array_equal(
            state.user_transcript, jnp.argmax(out.transcript_logits[:, 0], axis=-1)
        )
        tokens = jnp.concatenate([state.tokens[:, 1:], text[:, n : n + 1]], axis=1)
        frames = jnp.asarray(speech[:, n])
        state = state._replace(text=jnp.asarray(text[:, n]), tokens=tokens, mel=frames)
    parts = jax.tree.map(lambda *turns: jnp.concatenate(turns, axis=1), *(s[:3] for s in stepped))
    reports = jax.tree.map(lambda *turns: sum(turns), *(out.aux for out in stepped))
    run = jax.jit(_losses)
    wanted, got = (run(params, out, text, speech) for out in (full, Outputs(*parts, reports)))
    for name, loss in wanted.items():
        assert loss > 0, name
        np.testing.assert_allclose(got[name], loss, rtol=2e-6, err_msg=name)  # measured: equal


def _losses(params: Params, outputs: Outputs, text: Array, speech: Array) -> dict[str, Array]:
    """Every loss of the text and speech that were forced, and of a transcript."""
    batch = {"text": text}
    heard = np.random.default_rng(2).integers(
        0, CONFIG.vocab, (*text.shape, CONFIG.audio_positions)
    )
    flow = speech_loss.flow_loss(
        CONFIG,
        params["speech"],
        outputs.hidden,
        batch,
        speech,
        speech_loss.flow_totals(batch),
        jax.random.split(jax.random.key(0), len(text)),
    )
    return {
        "text": conversation_loss.negative_log_likelihood(outputs.text_logits, batch["text"]),
        "user_transcript": conversation_loss.negative_log_likelihood(
            outputs.transcript_logits, jnp.asarray(heard)
        ),
        "router_z": jnp.sum(outputs.aux.router_z),
        "flow": flow,
    }


@pytest.mark.optimised
def test_arrivals_equal_text_in_its_slots(turns: tuple) -> None:
    """Text as arrivals, in any order, equals the same text in the slots of micro-turns."""
    _, inputs, _, _ = turns
    params = random_params(CONFIG)
    run = jax.jit(forward, static_argnums=0)
    full = run(CONFIG, params["backbone"], params["router_bias"], inputs)
    b, n, slots = inputs.text.shape
    shuffled = np.random.default_rng(1).permutation(n * slots)
    time = np.arange(n)[:, None] * CONFIG.turn_span + np.arange(slots)
    arrivals = Arrivals(
        jnp.asarray(inputs.text).reshape(b, -1)[:, shuffled],
        jnp.broadcast_to(jnp.asarray(time.reshape(-1)[shuffled], jnp.uint32), (b, n * slots)),
    )
    beside = run(
        CONFIG,
        params["backbone"],
        params["router_bias"],
        inputs._replace(text=None),
        arrivals,
    )
    for name in ("text_logits", "transcript_logits", "hidden"):
        got, wanted = getattr(beside, name), getattr(full, name)
        np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=name)


@pytest.mark.optimised
def test_absent_frames_are_never_read(turns: tuple) -> None:
    _, inputs, _, _ = turns
    params = random_params(CONFIG)
    there = inputs.has_frame[..., None, None, None, None]
    run = jax.jit(forward, static_argnums=0)
    hidden = [
        run(
            CONFIG,
            params["backbone"],
            params["router_bias"],
            inputs._replace(frame=jnp.where(there, inputs.frame, fill)),
        ).hidden
        for fill in (0.5, jnp.nan)
    ]
    np.testing.assert_array_equal(*hidden)
