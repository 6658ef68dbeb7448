"""Corrections and cancellations that follow an earlier request, which they must not touch.

Users with held-out voices talk to the pair in real time, each in a row of an engine. What happens
is read from the events of their sessions.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.background.delegations import SORRY
from interaction.background.demo_tools import Row, demo_tools
from interaction.background.reasoner_agent import Reasoner, ReasonerAgent
from interaction.background.toolbox import Toolbox
from interaction.data import clips, voices
from interaction.data.domain.tool_requests import OKAY
from interaction.engine import session_events
from interaction.engine.engine import Engine
from interaction.engine.rows import BatchModel
from interaction.engine.session import Session
from interaction.engine.session_events import SessionEvent
from interaction.evaluation.events import TURN_S
from interaction.evaluation.rollout import TURN

NEAR_S = 3.0  # s by which a timer may differ
LEVEL = 0.1  # root mean square of the users' speech
_ROWS = (Row("butter", 9, "kitchen"), Row("pepper", 18, "office"))
_TIMER, _PRICE = "ring a bell in ten minutes", "what is the price of the butter"
_BEFORE, _SETTLED, _LATER = 5, 35, 150  # micro-turns: before a request, and until the next one


class Case(NamedTuple):
    """Three utterances, or two, of which the last one is a correction or a cancellation."""

    said: tuple[tuple[str, int], ...]  # words, and micro-turns of silence after them
    timers: tuple[int, ...]  # seconds from the first request that timers run to
    told: str  # words that the last utterance has to lead to


CASES = {
    "the pepper": Case(
        ((_TIMER, _SETTLED), (_PRICE, _SETTLED), ("no wait the pepper", 2 * _SETTLED)),
        (600,),
        "eighteen dollars",
    ),
    "never mind": Case(
        ((_TIMER, _SETTLED), (_PRICE, _SETTLED), ("never mind", 2 * _SETTLED)), (600,), SORRY
    ),
    "fifteen": Case(((_TIMER, _LATER), ("no fifteen", 2 * _SETTLED)), (600, 900), OKAY),
}
# The same in words of the demo's training, which has neither "no" alone nor fifteen minutes.
IN_TRAINED_WORDS = {
    "twenty": Case(
        ((_TIMER, _LATER), ("no wait twenty minutes", 2 * _SETTLED)), (600, 1_200), OKAY
    ),
}

_EVERY = CASES | IN_TRAINED_WORDS


class Seen(NamedTuple):
    """What happened in one session."""

    case: str
    voice: str
    right: bool
    touched: bool  # whether another delegation was cancelled or changed
    heard: str  # words that the model understood
    said: str  # words that the model said after the last utterance
    timers: list[float]  # s from the first request that each timer was set to run to
    ended: list[int]  # timers that were cancelled before their end


class Timer(NamedTuple):
    """A timer that a session set."""

    began: float  # s
    seconds: float  # from there
    cancelled: bool  # before its end


class _User:
    """A session with its user's PCM and what is seen of it."""

    def __init__(self, engine: Engine, reasoner: Reasoner, case: str, seed: list[int]) -> None:
        self.case, rng = case, np.random.default_rng(seed)
        self.voice = voices.draw_voice(rng, "heldout")
        self.events: list[SessionEvent] = []
        self.timers: list[tuple[float, float, threading.Event]] = []
        tools = demo_tools(_ROWS, sleep=self._wait)
        self.session: Session = engine.open(ReasonerAgent(reasoner, Toolbox(tools)), int(seed[-1]))
        self.session.subscribe(self.events.append)
        parts = [np.zeros(_BEFORE * TURN, np.float32)]
        for words, silence in _EVERY[case].said:
            pcm = clips.user_clip(words, self.voice).pcm
            pcm = pcm * LEVEL / clips.level(pcm)
            self.last = sum(map(len, parts)) // TURN
            parts += [pcm, np.zeros(-len(pcm) % TURN + silence * TURN)]
        self.chunks = np.float32(np.concatenate(parts)).reshape(-1, TURN)

    def _wait(self, seconds: float, cancelled: threading.Event) -> None:
        self.timers.append((time.monotonic(), seconds, cancelled))
        cancelled.wait(seconds)

    def hear(self, turn: int) -> None:
        """Gives the session a chunk."""
        silence = np.zeros(TURN, np.float32)
        self.session.hear(self.chunks[turn] if turn < len(self.chunks) else silence)

    def seen(self) -> Seen:
        """What happened; call it while the session is open."""
        timers = [Timer(at, seconds, gone.is_set()) for at, seconds, gone in self.timers]
        return judge(self.case, str(self.voice), self.events, timers, self.last)


def judge(
    name: str, voice: str, events: Sequence[SessionEvent], timers: Sequence[Timer], last: int
) -> Seen:
    """Decides whether a session went right.

    Args:
      name: Name of its case.
      voice: Its voice, in words.
      events: Its events.
      timers: Its timers.
      last: Micro-turn in which the last utterance begins.
    """
    case = _EVERY[name]

    def text(kind: str, after: int) -> str:
        return "".join(one.text for one in events if one.kind == kind and one.turn > after).strip()

    to = [round(one.began - timers[0].began + one.seconds, 1) for one in timers]
    ended = [number for number, one in enumerate(timers) if one.cancelled]
    kept = len(to) == len(case.timers) and np.allclose(to, case.timers, atol=NEAR_S)
    kept = kept and ended == list(range(len(to) - 1))
    said = text(session_events.MODEL_TEXT, last)
    return Seen(
        case=name,
        voice=voice,
        right=bool(kept and said and case.told in said),
        touched=len(case.timers) == 1 and bool(ended),
        heard=text(session_events.USER_TRANSCRIPT, -1),
        said=said,
        timers=to,
        ended=ended,
    )


def correct(
    model: BatchModel,
    reasoner: Reasoner,
    count: int,
    seed: int,
    on_turn: Callable[[int], object] | None = None,
) -> list[Seen]:
    """Runs every case with `count` held-out voices, which talk at the same time.

    Args:
      model: The live model.
      reasoner: The background model.
      count: Voices of each case.
      seed: Decides the voices.
      on_turn: Called with the number of each micro-turn.
    """
    reasoner.warm_up()
    seen: list[Seen] = []
    for case in _EVERY:
        seen += _run(model, reasoner, case, [[seed, number] for number in range(count)], on_turn)
    return seen


def _run(
    model: BatchModel,
    reasoner: Reasoner,
    case: str,
    seeds: list[list[int]],
    on_turn: Callable[[int], object] | None,
) -> list[Seen]:
    with Engine(model, len(seeds)) as engine:
        users = [_User(engine, reasoner, case, seed) for seed in seeds]
        began = time.monotonic()
        for turn in range(max(len(user.chunks) for user in users)):
            for user in users:
                user.hear(turn)
            if on_turn is not None:
                on_turn(turn)
            time.sleep(max(0.0, began + (turn + 1) * TURN_S - time.monotonic()))
        return [user.seen() for user in users]


def summarise(seen: list[Seen]) -> dict[str, Any]:
    """Counts of what happened.

    Returns:
      For JSON: "right" and "count" over `CASES`, and by case also of `IN_TRAINED_WORDS`;
      "touched", sessions of all cases in which another delegation was cancelled or changed;
      "mistakes", all that was not right.
    """
    asked = [one for one in seen if one.case in CASES]
    return {
        "count": len(asked),
        "right": sum(one.right for one in asked),
        "touched": sum(one.touched for one in seen),
        "cases": {
            case: {
                "count": sum(one.case == case for one in seen),
                "right": sum(one.right for one in seen if one.case == case),
            }
            for case in _EVERY
        },
        "mistakes": [one._asdict() for one in seen if not one.right],
    }
