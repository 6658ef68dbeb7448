r"""Checks that a session's bits depend on nothing but the session.

python -m experiments.check_bits --preset=demo --json=out/check_bits.json

`batch_equal`: the streaming step gives a session the same replies and the same speech alone, in
batches of other sizes, in other rows, and beside other sessions. `forward_equal`: the pass of
training, with its gradient, gives the session what the step gave. Both for random parameters, in
float32 and in bfloat16. `cost`: time of the step over that of one whose products do not care.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.check_mesh import random_params
from experiments.figures_file import write_figures
from interaction.config import DTYPES, ModelConfig
from interaction.distributed import experts, sharding
from interaction.distributed.xla_options import compiler_options
from interaction.model import control_tokens, session_state, streaming
from interaction.model.heads import apply_heads
from interaction.model.parameters import init_model_params
from interaction.model.sequence import encode
from interaction.model.turn_inputs import (
    TurnOutputs,
    assemble,
    frame_pairs,
    no_frame,
    silent_outputs,
)
from interaction.ops import dense, mel, sampling
from interaction.presets import PRESETS
from interaction.training.conversation_loss import negative_log_likelihood
from interaction.types import Array, Chunk, Params, Special

_SEEDS = (11, 12, 13)  # of the sessions that are compared
# Rows of the sessions above in each batch; other rows hold sessions of their own.
_BATCHES: dict[int, tuple[int, ...]] = {2: (1, 0), 3: (2, 0, 1), 8: (5, 0, 7), 24: (23, 3, 11)}
_OPTIONS = compiler_options("cpu")  # those of the step and of training
_TIMED, _SKIPPED = 300, 20  # micro-turns whose time is taken, after some


class Inputs(NamedTuple):
    """Inputs of one session."""

    audio: np.ndarray  # float32[n, samples]
    text: np.ndarray  # int32[n, text_slots], PAD where empty
    frame: np.ndarray  # float32[n, size, size, 3]
    has_frame: np.ndarray  # bool[n]


def inputs_of(config: ModelConfig, seed: int, turns: int) -> Inputs:
    """Noise, with text in a fifth and frames in a seventh of the micro-turns."""
    rng, size = np.random.default_rng(seed), config.frame_size
    text = rng.integers(Special.COUNT, config.vocab, (turns, config.text_slots))
    there = (rng.random((turns, 1)) < 0.2) & (rng.random(text.shape) < 0.6)
    loud = 10 ** rng.uniform(-3, -0.5, (turns, 1))
    return Inputs(
        audio=(loud * rng.standard_normal((turns, config.audio.turn_samples))).astype(np.float32),
        text=np.where(there, text, Special.PAD).astype(np.int32),
        frame=rng.random((turns, size, size, 3), np.float32),
        has_frame=rng.random(turns) < 1 / 7,
    )


class Talk(NamedTuple):
    """What sessions heard of themselves, [b, n, ...]."""

    text: np.ndarray
    user_transcript: np.ndarray
    audio: np.ndarray  # PCM of the replies
    mel: np.ndarray  # of what was said


def talk(config: ModelConfig, params: Params, sessions: list[Inputs], seeds: list[int]) -> Talk:
    """Runs the step as it is served; text and frames are passed when a session has any."""
    params = sharding.cast_params(params, config.transformer.dtype)
    step = _served(config)
    state = session_state.init_state(config, session_state.session_keys(jnp.asarray(seeds)))
    found = []
    for turn in range(len(sessions[0].audio)):
        state, reply = step(params, state, chunk_of(sessions, turn))
        found.append(jax.device_get((reply.text, reply.user_transcript, reply.audio, state.mel)))
    return Talk(*(np.stack(parts, axis=1) for parts in zip(*found, strict=True)))


@functools.cache
def _served(config: ModelConfig) -> Any:  # noqa: ANN401
    abstract = jax.eval_shape(functools.partial(init_model_params, config), jax.random.key(0))
    return streaming.make_step(config, sharding.make_mesh({}), sharding.param_specs(abstract))


def chunk_of(sessions: list[Inputs], turn: int) -> Chunk:
    """One micro-turn; a kind of input that no session has in it is left out."""
    now = Inputs(*(np.stack([one[kind][turn] for one in sessions]) for kind in range(4)))
    chunk = Chunk(audio=jnp.asarray(now.audio), active=jnp.ones(len(sessions), bool))
    if np.any(now.text != Special.PAD):
        chunk = chunk._replace(text=jnp.asarray(now.text))
    if np.any(now.has_frame):
        chunk = chunk._replace(frame=jnp.asarray(now.frame), has_frame=jnp.asarray(now.has_frame))
    return chunk


def batch_differences(config: ModelConfig, params: Params, turns: int) -> Iterator[str]:
    """Names what differs between sessions alone and the same ones in larger batches."""
    mine = [inputs_of(config, seed, turns) for seed in _SEEDS]
    alone = [talk(config, params, [one], [seed]) for one, seed in zip(mine, _SEEDS, strict=True)]
    for size, rows in _BATCHES.items():
        seeds = [100 * size + row for row in range(size)]
        sessions = [inputs_of(config, seed, turns) for seed in seeds]
        for row, seed, one in zip(rows, _SEEDS, mine, strict=False):
            seeds[row], sessions[row] = seed, one
        together = talk(config, params, sessions, seeds)
        for row, wanted in zip(rows, alone, strict=False):
            for name, got in together._asdict().items():
                same = (got[row] == getattr(wanted, name)[0]).reshape(turns, -1).all(axis=1)
                if not same.all():
                    yield f"{name} in row {row} of {size} from micro-turn {np.argmin(same)} on"


class Outputs(NamedTuple):
    """What the transformer and the flow head give one session, [n, ...]."""

    text_logits: np.ndarray
    transcript_logits: np.ndarray
    hidden: np.ndarray
    mel: np.ndarray
    losses: np.ndarray  # of text and transcript, nats


def forward_differences(config: ModelConfig, params: Params, turns: int) -> Iterator[str]:
    """Names what differs between the pass of training and the step, for one session."""
    session, seed = inputs_of(config, _SEEDS[0], turns), _SEEDS[0]
    said = talk(config, params, [session], [seed])
    found = []
    for run in (_passed, _stepped):
        hidden, said_logits, heard_logits = run(config, params, session, said)
        losses = _loss(said_logits, said.text[0]), _loss(heard_logits, said.user_transcript[0])
        made = _speech(config, params, hidden, said, seed)
        found.append(Outputs(said_logits, heard_logits, hidden, made, np.array(losses)))
    for name, *pair in zip(Outputs._fields, *found, strict=True):
        got, wanted = (np.asarray(one, np.float32) for one in pair)
        if not np.array_equal(got, wanted):
            yield f"{name} by {np.max(np.abs(got - wanted)):.1e}"
    aloud = np.any(said.mel[0] != config.speech.mel_floor, axis=(1, 2))
    if not np.array_equal(found[0].mel[aloud], said.mel[0][aloud]):
        yield "mel is not what was said"
    heard = np.argmax(found[0].transcript_logits, axis=-1)
    if not np.array_equal(heard, said.user_transcript[0]):
        yield "user transcript is not what was heard"


def _passed(
    config: ModelConfig, params: Params, session: Inputs, said: Talk
) -> tuple[np.ndarray, ...]:
    """Hidden states and logits of all micro-turns in one pass, compiled with its gradient."""
    sound, arrived, frame, has_frame = (jnp.asarray(part[None]) for part in session)
    _, pairs = frame_pairs(no_frame(config, 1), frame, has_frame)
    heard, text, frames = (jnp.asarray(x) for x in (said.user_transcript, said.text, said.mel))
    audio = config.audio

    def loss(backbone: Params, pcm: Array) -> tuple[Array, tuple[Array, ...]]:
        tail = mel.init_tail(1, audio.user)
        _, user = mel.log_mel_stream(tail, pcm.reshape(1, -1), audio.user, audio)
        inputs = assemble(
            config,
            user.reshape(1, -1, audio.user_frames, audio.mels),
            silent_outputs(config, 1),
            TurnOutputs(heard, text, frames),
            jnp.full(text.shape, float(config.self_audio)),
            text=arrived,
            frame=pairs,
            has_frame=has_frame,
        )
        tail, _, _ = encode(config, backbone, params["router_bias"], inputs)
        heads = sharding.gather_and_cast(backbone["heads"], "heads", config.transformer.dtype)
        said_logits, heard_logits, hidden = apply_heads(config, heads, tail)
        total = negative_log_likelihood(said_logits, text)
        total += negative_log_likelihood(heard_logits, heard)
        return total, (hidden, said_logits, heard_logits)

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=_OPTIONS)
    (_, found), _ = slope(params["backbone"], sound)
    return tuple(np.asarray(one[0]) for one in found)


def _stepped(
    config: ModelConfig, params: Params, session: Inputs, said: Talk
) -> tuple[np.ndarray, ...]:
    """Hidden states and logits of one micro-turn after another, text and frames where they are."""
    cast = sharding.cast_params(params, config.transformer.dtype)
    listen = jax.jit(functools.partial(streaming.listen, config), compiler_options=_OPTIONS)
    state = session_state.init_state(config, jnp.zeros((1, 2), jnp.uint32))
    found = []
    for turn in range(len(session.audio)):
        state, outputs = listen(cast, state, chunk_of([session], turn))
        text, frames = (jnp.asarray(leaf[:, turn]) for leaf in (said.text, said.mel))
        state = state._replace(text=text, mel=frames)
        rows = outputs.hidden, outputs.text_logits, outputs.transcript_logits
        found.append(jax.device_get(rows))
    return tuple(np.concatenate([one[0] for one in parts]) for parts in zip(*found, strict=True))


@functools.partial(jax.jit, compiler_options=_OPTIONS)
def _loss(logits: Array, wanted: Array) -> Array:
    return negative_log_likelihood(logits, wanted)


def _speech(
    config: ModelConfig, params: Params, hidden: np.ndarray, said: Talk, seed: int
) -> np.ndarray:
    """Mel of each micro-turn, all at once, after what was said before it."""
    cast = sharding.cast_params(params, config.transformer.dtype)["speech"]
    text, turns = jnp.asarray(said.text), said.text.shape[1]
    silent = jnp.full((1, config.speech.token_window), Special.SILENT, jnp.int32)
    windows = control_tokens.token_windows(silent, control_tokens.spoken_tokens(text)[0])[0]
    floor = np.full_like(said.mel[:, :1], config.speech.mel_floor)
    before = np.concatenate([floor, said.mel[:, :-1]], axis=1)[0]
    keys = jnp.broadcast_to(jax.random.key(seed), turns)
    keys = sampling.turn_keys(keys, jnp.arange(turns, dtype=jnp.uint32), sampling.FLOW)
    frames = functools.partial(streaming.speech_frames, config)
    run = jax.jit(frames, compiler_options=_OPTIONS)
    return np.asarray(run(cast, jnp.asarray(before), windows, jnp.asarray(hidden), keys))


def cost(config: ModelConfig, params: Params) -> float:
    """Median time of a step of one session over that without rows, runs or kernels for its bits.

    Both steps take turns, so that other work on the machine slows both.
    """

    def prepare() -> tuple[Any, Any]:
        step = streaming.make_step(config, sharding.make_mesh({}), sharding.param_specs(params))
        state = session_state.init_state(config, jnp.zeros((1, 2), jnp.uint32))
        return step(params, state, chunks[0])[0], step  # compiles

    session = inputs_of(config, 0, _SKIPPED + _TIMED)
    chunks = [Chunk(audio=jnp.asarray(audio[None])) for audio in session.audio]
    state, step = prepare()
    free = (
        (dense, "_ROWS", 1),
        (dense, "_ENOUGH", 1),
        (dense, "_COLUMNS", 1),
        (dense, "_RUN", 1 << 30),
        (experts, "_FEW_PRODUCTS", 0),
    )
    with contextlib.ExitStack() as stack:
        for place, name, value in free:
            stack.enter_context(mock.patch.object(place, name, value))
        other_state, other_step = prepare()
    times: tuple[list[float], list[float]] = [], []
    for chunk in chunks:
        began = time.perf_counter()
        state, reply = step(params, state, chunk)
        jax.block_until_ready(reply)
        between = time.perf_counter()
        other_state, reply = other_step(params, other_state, chunk)
        jax.block_until_ready(reply)
        times[0].append(between - began)
        times[1].append(time.perf_counter() - between)
    ours, theirs = (np.median(taken[_SKIPPED:]) for taken in times)
    return float(ours / theirs)


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_enum("preset", "demo", list(PRESETS), "Model.")
    flags.DEFINE_integer("turns", 500, "Micro-turns of each session.", 1)
    flags.DEFINE_string("json", None, "File for the figures.")


def main(argv: list[str]) -> None:
    """Prints what differs, and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    config = dataclasses.replace(PRESETS[given.preset](), trained_on_frames=True)
    params = jax.device_put(random_params(config))
    figures: dict[str, Any] = {"preset": given.preset, "turns": given.turns}
    for name, check in (("batch_equal", batch_differences), ("forward_equal", forward_differences)):
        wrong = []
        for dtype in DTYPES:
            transformer = dataclasses.replace(config.transformer, dtype=dtype)
            one = dataclasses.replace(config, transformer=transformer)
            wrong += [f"{dtype}: {what}" for what in check(one, params, given.turns)]
        figures[name] = not wrong
        print(f"{name}: {not wrong}", *wrong, sep="\n  ", flush=True)
    figures["cost"] = cost(config, params)
    print(f"cost: {figures['cost']:.2f}")
    write_figures(figures, given.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
