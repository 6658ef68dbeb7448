"""Lets a model listen to recorded users, free-running: it hears nothing else, without help."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from interaction.types import Array, Chunk, Reply

TURN = 3_200  # samples of a micro-turn


class Listener(Protocol):
    """What is asked of a model; `interaction.load` returns one."""

    def init_state(self, sessions: int, seed: Any) -> Any:  # noqa: ANN401
        """State of fresh sessions; `seed` is an int or one int for each."""

    def step(self, state: Any, chunk: Chunk) -> tuple[Any, Reply]:  # noqa: ANN401
        """One micro-turn."""

    def decode(self, ids: Sequence[int]) -> str:
        """Words of text tokens."""


class Rollout(NamedTuple):
    """What a model replied to one user, micro-turn by micro-turn."""

    audio: np.ndarray  # float32[turns * 3200]; reply n plays from 0.2 (n + 1) s
    text: np.ndarray  # int32[turns]
    user_transcript: np.ndarray  # int32[turns, slots], the user's words as the model heard them
    step_s: np.ndarray  # float64[turns], wall time of each step, its batch together


def to_float(pcm: np.ndarray) -> np.ndarray:
    """int16 or float PCM -> float32 in [-1, 1]."""
    pcm = np.asarray(pcm)
    return pcm.astype(np.float32) / 32_768 if pcm.dtype == np.int16 else pcm.astype(np.float32)


def rollout(
    model: Listener,
    users: Sequence[np.ndarray],
    seeds: Sequence[int],
    on_turn: Callable[[int], object] | None = None,
) -> list[Rollout]:
    """Streams users through a model, one row of the batch each.

    Args:
      model: as returned by `interaction.load`.
      users: PCM of b users, int16[n] or float32[n] at 16 kHz; shorter ones and incomplete
        micro-turns are filled with silence.
      seeds: b seeds; a session depends on its own alone.
      on_turn: called with the number of each micro-turn that is done.

    Returns:
      One Rollout for each user, cut to its number of micro-turns.

    Raises:
      ValueError: if `users` is empty, the number of seeds differs, or a user is no PCM.
    """
    if not users or len(users) != len(seeds):
        raise ValueError(
            f"seeds: got {len(seeds)} for {len(users)} users, wanted one each and at least one"
        )
    lengths = [-(-len(user) // TURN) for user in users]
    audio = np.zeros((len(users), max(lengths) * TURN), np.float32)
    for row, user in zip(audio, users, strict=True):
        row[: len(user)] = to_float(user)
    state = model.init_state(sessions=len(users), seed=np.asarray(seeds, np.int32))
    replies, times = [], []
    for turn in range(max(lengths)):
        began = time.perf_counter()
        pcm = audio[:, turn * TURN : (turn + 1) * TURN]
        state, reply = model.step(state, Chunk(audio=cast(Array, pcm)))
        if np.any(reply.refused):
            raise ValueError(
                f"users: rows {np.flatnonzero(reply.refused).tolist()} hold NaN, Inf or samples "
                f"far beyond 1 in micro-turn {turn}, wanted PCM in [-1, 1]; check the recordings"
            )
        replies.append(
            (np.asarray(reply.audio), np.asarray(reply.text), np.asarray(reply.user_transcript))
        )
        times.append(time.perf_counter() - began)
        if on_turn is not None:
            on_turn(turn)
    spoken, text, user_transcript = (
        np.stack(parts, axis=1) for parts in zip(*replies, strict=True)
    )
    return [
        Rollout(
            spoken[row, :turns].reshape(-1).astype(np.float32),
            text[row, :turns],
            user_transcript[row, :turns],
            np.asarray(times[:turns]),
        )
        for row, turns in enumerate(lengths)
    ]
