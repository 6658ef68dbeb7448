"""What a micro-turn reads of the one before it, by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from interaction.model.turn_inputs import (
    LastFrame,
    TurnInputs,
    TurnOutputs,
    assemble,
    frame_pairs,
    silent_outputs,
)
from tests.support import FINE

CONFIG = FINE
AUDIO = CONFIG.audio
MELS, TURNS = AUDIO.mels, 3
HEARD = [1, 3, 5, 7, 9, 11, 13, 15]  # of 16 frames of 200 samples those that end where 400 do


def coded_mel(levels: np.ndarray) -> np.ndarray:
    """Log10 mel float32[..., m] whose dMel levels are given by frame, int[...]."""
    return np.repeat(-7.0 + 0.6 * levels[..., None], MELS, axis=-1).astype(np.float32)


def levels_of(bins: np.ndarray) -> np.ndarray:
    """The level of each frame, the same in all channels."""
    bins = np.asarray(bins)
    np.testing.assert_array_equal(bins, np.broadcast_to(bins[..., :1], bins.shape))
    return bins[..., 0]


def outputs(first: int) -> tuple[TurnOutputs, np.ndarray]:
    """Outputs of the micro-turn before and of TURNS micro-turns, told apart by their numbers.

    Frame i of micro-turn j has level (i + first * j) mod 16, micro-turn 0 being the one before.
    """
    frames = (np.arange(16) + first * np.arange(TURNS + 1)[:, None]) % 16
    turns = np.arange(TURNS + 1)
    mel = coded_mel(frames)[None]
    transcript = np.stack([100 + turns, 200 + turns], axis=-1)[None]
    return TurnOutputs(transcript, 300 + turns[None], mel), frames


def run(single: bool) -> tuple[TurnInputs, np.ndarray]:
    said, frames = outputs(5)
    before = TurnOutputs(*(jnp.asarray(leaf[:, 0]) for leaf in said))
    later = None if single else TurnOutputs(*(jnp.asarray(leaf[:, 1:]) for leaf in said))
    count = 1 if single else TURNS
    user = coded_mel(np.arange(8 * count).reshape(1, count, 8) % 16)
    return assemble(CONFIG, jnp.asarray(user), before, later, jnp.ones((1, count))), frames


def test_a_micro_turn_hears_its_own_speech_one_earlier() -> None:
    """Every second frame, the later one of two: it ends with the user's frame beside it."""
    found, frames = run(single=False)
    np.testing.assert_array_equal(levels_of(found.self_audio)[0], frames[:TURNS, HEARD])
    assert levels_of(found.self_audio)[0, 0].tolist() == HEARD  # of the micro-turn before


def test_a_micro_turn_reads_the_last_token_and_transcript() -> None:
    found, _ = run(single=False)
    assert found.last.tolist() == [[300, 301, 302]]
    assert found.user_transcript.tolist() == [[[100, 200], [101, 201], [102, 202]]]
    assert levels_of(found.user)[0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 10, 11, 12, 13, 14, 15],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]


def test_one_micro_turn_alone_reads_the_one_before() -> None:
    found, _ = run(single=True)
    assert levels_of(found.self_audio)[0].tolist() == [HEARD]
    assert found.last.tolist() == [[300]] and found.user_transcript.tolist() == [[[100, 200]]]


def test_other_hops_have_another_stride() -> None:
    """A hop of 800 beside one of 200: of four frames the last one is heard."""
    config = dataclasses.replace(
        CONFIG, audio=dataclasses.replace(AUDIO, user=dataclasses.replace(AUDIO.user, hop=800))
    )
    said, _ = outputs(0)
    before = TurnOutputs(*(jnp.asarray(leaf[:, 0]) for leaf in said))
    user = coded_mel(np.zeros((1, 1, 4)))
    found = assemble(config, jnp.asarray(user), before, None, jnp.ones((1, 1)))
    assert levels_of(found.self_audio)[0].tolist() == [[3, 7, 11, 15]]


def test_before_the_first_micro_turn_both_sides_are_silent() -> None:
    silent = silent_outputs(CONFIG, 2)
    assert silent.user_transcript.tolist() == [[3, 3]] * 2  # <none>
    assert silent.text.tolist() == [1, 1]  # <silent>
    np.testing.assert_array_equal(silent.speech_mel, np.full((2, 16, MELS), -5.0))


def test_a_frame_stands_beside_the_newest_one_before_it() -> None:
    """Of session 0 the second and fourth frames exist; session 1 saw frame 9 earlier."""
    numbers = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    frames = np.broadcast_to(numbers[:, :, None, None, None], (2, 4, 40, 40, 3))
    has = np.array([[False, True, False, True], [True, True, False, False]])
    last = LastFrame(jnp.full((2, 40, 40, 3), 9.0), jnp.array([False, True]))
    last, pairs = frame_pairs(last, jnp.asarray(frames), jnp.asarray(has))
    read = [[(1, 2, 2), (3, 4, 2)], [(0, 5, 9), (1, 6, 5)]]  # micro-turn, frame, the one before
    for session, found in enumerate(read):
        for turn, frame, before in found:
            assert np.all(pairs[session, turn, 0] == before)
            assert np.all(pairs[session, turn, 1] == frame)
    assert np.all(last.seen) and np.all(last.frame[0] == 4) and np.all(last.frame[1] == 6)
