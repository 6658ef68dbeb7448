"""How many words of the user transcript survive a network that loses chunks while clocks drift."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interaction.data.stored_session import StoredSession
from interaction.engine.playout import PlayoutBuffer
from interaction.evaluation.network import RATE, TURN, TURN_S, Trace, make_trace
from interaction.evaluation.rollout import Listener, rollout, to_float
from interaction.evaluation.statistics import common_words
from interaction.types import Special

PERFECT = "perfect"
NETWORKS = (PERFECT, "loss", "slow_200_loss", "fast_200_loss")
_MORE = 4  # micro-turns after the user's last one, for what the buffer delays


def through(user: np.ndarray, trace: Trace, phase_s: float) -> np.ndarray:
    """What a session hears of a user on a network.

    Args:
      user: int16[n] or float32[n] at 16 kHz.
      trace: From `make_trace`, whose numbers count from 0.
      phase_s: Time of the first micro-turn, s.

    Returns:
      float32[m], some micro-turns longer.
    """
    now, at, heard = [0.0], 0, []
    buffer, pcm = PlayoutBuffer(TURN, RATE, lambda: now[0]), to_float(user)
    for turn in range(len(pcm) // TURN + _MORE):
        due = phase_s + turn * TURN_S
        while at < len(trace.time) and trace.time[at] <= due:
            now[0], number = float(trace.time[at]), int(trace.number[at])
            buffer.put(number, pcm[number * TURN : (number + 1) * TURN])
            at += 1
        now[0] = due
        heard.append(buffer.take())
    return np.concatenate(heard)


def count_words(
    model: Listener,
    records: Sequence[StoredSession],
    seed: int,
    on_turn: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Words that a model transcribes rightly, on each network.

    In every session the drifting clock slips past a micro-turn at a random moment.

    Args:
      model: From `interaction.load`.
      records: Sessions with the user's PCM and transcript.
      seed: Seed of losses and slips.
      on_turn: Called with the number of each finished micro-turn of one network.

    Returns:
      A dict for JSON: "words" that the users say; "words_right", words that are transcribed, in
      their order, by network; "transcript_ratio", the worst of these relative to a perfect network.
    """
    right, wanted = {}, [_words(model, one["user_transcript"]) for one in records]
    for name in NETWORKS:
        rng = np.random.default_rng([seed, NETWORKS.index(name)])
        users = [_through_network(one["user"], name, rng) for one in records]
        found = rollout(model, users, range(len(users)), on_turn)
        heard = [_words(model, one.user_transcript) for one in found]
        right[name] = sum(common_words(*pair) for pair in zip(wanted, heard, strict=True))
    return {
        "words": sum(map(len, wanted)),
        "words_right": right,
        "transcript_ratio": min(right[name] for name in NETWORKS[1:]) / right[PERFECT],
    }


def _through_network(user: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    seconds = len(user) / RATE
    trace = make_trace(name, seconds + TURN_S, int(rng.integers(1 << 31)))
    said = trace.number < len(user) // TURN
    trace = trace._replace(
        time=trace.time[said], serial=trace.serial[said], number=trace.number[said]
    )
    slip = rng.uniform(0.1, 0.9) * seconds  # when chunks arrive just at a micro-turn
    arrival = float(np.interp(slip, trace.serial * TURN_S, trace.time))
    return through(user, trace, arrival - slip if "200" in name else 0.1)


def _words(model: Listener, ids: np.ndarray) -> list[str]:
    return model.decode([int(one) for one in np.ravel(ids) if one >= Special.COUNT]).split()
