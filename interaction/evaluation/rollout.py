"""Free-running replies of a model to recorded users, without teacher forcing."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from interaction.types import Array, Chunk, Reply

TURN = 3_200  # samples of a micro-turn


class Listener(Protocol):
    """The methods of a model that are needed here; `interaction.load` returns one."""

    def init_state(self, sessions: int, seed: Any) -> Any:  # noqa: ANN401
        """State of new sessions; `seed` is an int, or one int for each session."""

    def step(self, state: Any, chunk: Chunk) -> tuple[Any, Reply]:  # noqa: ANN401
        """Takes one micro-turn; returns the new state and the replies."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


class Rollout(NamedTuple):
    """The replies of a model to one user."""

    audio: np.ndarray  # float32[turns * 3200], PCM; reply n plays from 0.2 (n + 1) s on
    text: np.ndarray  # int32[turns], text-out tokens
    user_transcript: np.ndarray  # int32[turns, slots], the model's transcript of the user
    step_s: np.ndarray  # float64[turns], wall time of the step of the whole batch, s


def to_float(pcm: np.ndarray) -> np.ndarray:
    """Converts PCM to floating point.

    Args:
      pcm: int16[n], or float32[n] or float64[n] in [-1, 1].

    Returns:
      float32[n] in [-1, 1].
    """
    pcm = np.asarray(pcm)
    return pcm.astype(np.float32) / 32_768 if pcm.dtype == np.int16 else pcm.astype(np.float32)


def rollout(
    model: Listener,
    users: Sequence[np.ndarray],
    seeds: Sequence[int],
    on_turn: Callable[[int], object] | None = None,
) -> list[Rollout]:
    """Plays users to a model, each in its own row of the batch.

    Args:
      model: From `interaction.load`.
      users: PCM of b users, int16[n] or float32[n] at 16 kHz. Shorter ones and incomplete
        micro-turns are filled with silence.
      seeds: b seeds; a session depends only on its own one.
      on_turn: Called with the number of each finished micro-turn.

    Returns:
      One Rollout for each user, of as many micro-turns as the user's PCM.

    Raises:
      ValueError: `users` is empty, the number of seeds differs, or the PCM of a user is refused.
    """
    if not users or len(users) != len(seeds):
        raise ValueError(
            f"seeds: got {len(seeds)} for {len(users)} users, wanted one for each of at least one "
            "user; pass as many seeds as users"
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
                f"users: got NaN, Inf or samples far beyond 1 in rows "
                f"{np.flatnonzero(reply.refused).tolist()} in micro-turn {turn}, wanted PCM in "
                "[-1, 1]; check the recordings"
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
