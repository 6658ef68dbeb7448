"""Three sessions whose text is forced, through the real step: what is said and what is silence.

Spans of control tokens are exact silence in the audio. What the step hears and says besides is
compared with its NumPy reference.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interaction import presets
from interaction.model import control_tokens, session_state, streaming
from interaction.model.session_state import StreamState
from interaction.model.turn_inputs import TurnInputs
from interaction.ops import mel, sampling
from interaction.types import Array, Chunk, Special
from tests import numpy_model
from tests.support import random_params

CONFIG = presets.tiny()
SILENT, HOLD, CANCEL = Special.SILENT, Special.HOLD, Special.CANCEL
OPEN, UPDATE, CLOSE = Special.DELEGATE, Special.UPDATE, Special.END_DELEGATE
SAMPLES = 3_200  # of a micro-turn
LAG = 400  # samples: the vocoder is two frames of 200 behind its mel
# Three sessions by micro-turn; what is above 7 is a word. Some micro-turns are silent in all.
TEXT = np.array(
    [
        [9, HOLD, OPEN, 10, 11, CLOSE, 12, CANCEL, 13, UPDATE, 14, CLOSE, SILENT, SILENT, 15],
        [OPEN, 20, SILENT, 21, UPDATE, 22, HOLD, 23, OPEN, 24, OPEN, 25, CANCEL, SILENT, 26],
        [SILENT, SILENT, 30, CLOSE, 31, 32, CANCEL, CANCEL, OPEN, UPDATE, 33, 34, SILENT, OPEN, 35],
    ]
)
# By hand: which micro-turns are said. Of session 1 the span that SILENT ends is never closed.
SAID = np.array(
    [
        [1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    bool,
)
SESSIONS, TURNS = TEXT.shape


def spoken(text: np.ndarray) -> np.ndarray:
    """One session, token by token: a span is words in a row behind an opening token."""
    said, inside = [], False
    for token in text:
        if token >= Special.COUNT:
            said.append(not inside)
        else:
            inside = token in (OPEN, UPDATE)
            said.append(token not in (SILENT, OPEN, UPDATE, CLOSE, CANCEL))
    return np.where(said, text, SILENT)


def windows(text: np.ndarray, size: int) -> np.ndarray:
    """The last spoken tokens of one session after each micro-turn, silence before the first."""
    line, found = deque([SILENT] * size, maxlen=size), []
    for token in spoken(text):
        line.append(token)
        found.append(list(line))
    return np.array(found)


class Talk(NamedTuple):
    """What a talk took and left."""

    user: np.ndarray  # float32[b, n, 3200], PCM of the users
    audio: np.ndarray  # float32[b, n * 3200], PCM of the replies
    text: np.ndarray  # int32[b, n], tokens of the replies
    states: list[StreamState]  # before the first micro-turn and after each


@pytest.fixture(scope="module")
def talk() -> Talk:
    params = random_params(CONFIG)
    user = np.random.default_rng(0).normal(0, 0.1, (SESSIONS, TURNS, SAMPLES)).astype(np.float32)

    def forced(state: StreamState, chunk: Chunk, token: Array) -> tuple:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming.sampling, "sample_tokens", lambda *_: token)
            return streaming.step(CONFIG, params, state, chunk)

    step: Callable = jax.jit(forced)
    state = session_state.init_state(CONFIG, session_state.session_keys(jnp.arange(SESSIONS)))
    states, replies = [jax.device_get(state)], []
    for turn in range(TURNS):
        state, reply = step(state, Chunk(audio=user[:, turn]), TEXT[:, turn].astype(np.int32))
        states.append(jax.device_get(state))
        replies.append(jax.device_get(reply))
    audio = np.concatenate([reply.audio for reply in replies], axis=1)
    return Talk(user, audio, np.stack([reply.text for reply in replies], axis=1), states)


def test_the_rule_by_hand() -> None:
    found = np.stack([spoken(row) for row in TEXT])
    np.testing.assert_array_equal(found, np.where(SAID, TEXT, SILENT))


def test_what_is_not_said_is_exactly_zero_and_what_is_said_is_heard(talk: Talk) -> None:
    """A micro-turn is heard from 400 of its samples to 400 of the next micro-turn's."""
    audio = talk.audio
    np.testing.assert_array_equal(talk.text, TEXT)  # the tokens themselves are in the reply
    heard = np.zeros((SESSIONS, TURNS * SAMPLES + LAG), bool)
    for row, turn in np.argwhere(SAID):
        heard[row, turn * SAMPLES + LAG : (turn + 1) * SAMPLES + LAG] = True
    heard = heard[:, : TURNS * SAMPLES]
    assert not np.any(audio[~heard])
    # Noise passes all filters, so that a sample that is said is zero by chance alone.
    assert np.mean(audio[heard] != 0) > 0.99 and np.abs(audio).max() <= 1
    frames = [x.reshape(SESSIONS, -1, 200) for x in (audio, heard)]
    np.testing.assert_array_equal(np.any(frames[0], axis=-1), np.all(frames[1], axis=-1))


def test_speech_is_made_of_the_last_spoken_tokens(talk: Talk) -> None:
    found = np.stack([state.tokens for state in talk.states[1:]], axis=1)
    wanted = np.stack([windows(row, CONFIG.speech.token_window) for row in TEXT])
    np.testing.assert_array_equal(found, wanted)


def test_a_micro_turn_that_is_not_said_has_the_mel_of_silence(talk: Talk) -> None:
    """And the vocoder starts afresh after one whole micro-turn of silence."""
    for turn, state in enumerate(talk.states[1:]):
        at_floor = np.all(state.mel == CONFIG.speech.mel_floor, axis=(1, 2))
        np.testing.assert_array_equal(at_floor, ~SAID[:, turn])
        idle = ~SAID[:, turn] & ((turn == 0) | ~SAID[:, turn - 1])
        np.testing.assert_array_equal(~np.any(state.vocoder.source.tail, axis=1), idle)


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """Frames [4, m] of the 3,200 samples behind 800 of context: each the last 1,600 at its end."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1_600) / 1_600)
    frames = np.stack([pcm[start : start + 1_600] for start in range(0, 3_200, 800)])
    magnitude = np.abs(np.fft.rfft(frames * window))
    bank = mel.mel_filterbank(CONFIG.audio.user, CONFIG.audio)
    return np.log10(np.maximum(magnitude @ bank, 1e-10))


def levels(log_mel: np.ndarray) -> np.ndarray:
    """The nearest of 16 levels, 0.6 apart from -7 on."""
    return np.argmin(np.abs(log_mel[..., None] - (-7 + 0.6 * np.arange(16))), axis=-1)


def numpy_inputs(talk: Talk, session: int) -> TurnInputs:
    """What the transformer reads in all micro-turns of one session, by NumPy."""
    pcm = np.pad(talk.user[session].ravel().astype(np.float64), (800, 0))
    user = [log_mel(pcm[turn * SAMPLES :][: SAMPLES + 800]) for turn in range(TURNS)]
    before = talk.states[:-1]
    said = np.stack([state.mel[session] for state in before])
    return TurnInputs(
        user=levels(np.stack(user)),
        # Of 16 frames of 200 samples, one micro-turn earlier, those that end where 800 do.
        self_audio=levels(said[:, [3, 7, 11, 15]]),
        self_audio_gain=np.ones(TURNS),
        user_transcript=np.stack([state.user_transcript[session] for state in before]),
        last=np.concatenate([[SILENT], TEXT[session, :-1]]),
        text=np.full((TURNS, CONFIG.text_slots), Special.PAD),
        has_frame=np.zeros(TURNS, bool),
    )


def test_the_step_is_its_numpy_reference(talk: Talk) -> None:
    """From PCM to the user's transcript and to the mel that is said, see `tests.numpy_model`."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_params(CONFIG))
    keys = jax.vmap(jax.random.wrap_key_data)(talk.states[0].key)
    for session in range(SESSIONS):
        outputs = numpy_model.forward(
            CONFIG, params["backbone"], params["router_bias"], numpy_inputs(talk, session)
        )
        tokens = windows(TEXT[session], CONFIG.speech.token_window)
        for turn, (_, transcript, hidden) in outputs.items():
            before, after = talk.states[turn], talk.states[turn + 1]
            heard = np.argmax(transcript, axis=-1)
            np.testing.assert_array_equal(after.user_transcript[session], heard)
            if SAID[session, turn]:
                key = sampling.turn_keys(keys, before.clock, sampling.FLOW)[session]
                noise = np.asarray(jax.random.normal(key, (16, CONFIG.audio.mels)), np.float64)
                given = hidden, tokens[turn], before.mel[session], noise
                wanted = numpy_model.generate_mel(CONFIG, params["speech"], *given)
                # Largest difference seen: 6e-5 of values up to 5.
                np.testing.assert_allclose(after.mel[session], wanted, atol=5e-4, rtol=0)


def test_spans_and_windows_of_long_sessions() -> None:
    """Random sessions, cut in two, with the shortest window and that of the presets."""
    usual = [SILENT, HOLD, OPEN, UPDATE, CLOSE, CANCEL, *range(8, 16)]
    text = np.random.default_rng(0).choice(usual, (32, 60))

    @jax.jit
    def halves(text: Array, before: Array) -> tuple[Array, Array]:
        first, inside = control_tokens.spoken_tokens(text[:, :23])
        second, _ = control_tokens.spoken_tokens(text[:, 23:], inside)
        head = control_tokens.token_windows(before, first)
        rest = control_tokens.token_windows(head[:, -1], second)
        return tuple(jnp.concatenate(both, axis=1) for both in ((first, second), (head, rest)))

    for size in (2, 12):
        aloud, found = halves(text, np.full((32, size), SILENT))
        np.testing.assert_array_equal(aloud, np.stack([spoken(row) for row in text]))
        np.testing.assert_array_equal(found, np.stack([windows(row, size) for row in text]))
