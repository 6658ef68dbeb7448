"""Hand-made sessions, and models whose figures follow from what they do."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from interaction.evaluation import Event
from interaction.types import Chunk, Reply, Special

TURN = 3_200
WORDS = "paris four one two three five six seven eight nine ten once upon a time".split()


def decode(ids: Sequence[int]) -> str:
    return " ".join(WORDS[i - Special.COUNT] for i in ids if i >= Special.COUNT)


def encode(text: str) -> list[int]:
    return [Special.COUNT + WORDS.index(word) for word in text.split()]


def answer_turn(end_s: float) -> int:
    """The first n with 0.2 (n + 1) >= end + 0.22."""
    return math.ceil((end_s + 0.22) / 0.2 - 1e-9) - 1


class FakeSession(NamedTuple):
    user: np.ndarray
    model: np.ndarray
    text: np.ndarray
    events: list[Event]


def build(plan: list[dict], turns: int = 80) -> FakeSession:
    """Makes a session from events, and adds the answers; a word takes two micro-turns."""
    user, model = np.zeros(turns * TURN, np.int16), np.zeros(turns * TURN, np.int16)
    text = np.full(turns, Special.SILENT, np.int32)
    events, rng = [], np.random.default_rng(0)
    for entry in plan:
        low, high = round(entry["start_s"] * 16_000), round(entry["end_s"] * 16_000)
        user[low:high] = rng.normal(0, 3_000, len(user[low:high]))
        if entry["kind"].startswith("interrupt"):
            cut = math.ceil((entry["start_s"] + 0.24) / 0.2 - 1e-9) - 1
            text[cut:], model[cut * TURN :] = Special.SILENT, 0
            index = max(i for i, event in enumerate(events) if event.answer)
            over = {"answer_end_turn": cut, "answer_end_s": 0.2 * (cut + 1)}
            events[index] = Event(**{**vars(events[index]), **over})
        if entry.get("answer"):
            first, tokens = answer_turn(entry["end_s"]), encode(entry["answer"])
            last = min(first + 2 * len(tokens), turns)
            text[first:last] = Special.HOLD
            text[first:last:2] = tokens[: len(text[first:last:2])]
            model[first * TURN : last * TURN] = rng.normal(0, 3_000, (last - first) * TURN)
            end = first + 2 * len(tokens)
            over = {"answer_end_turn": end, "answer_end_s": 0.2 * (end + 1)}
            entry = {**entry, "answer_turn": first, **over}
        events.append(Event(form=entry.pop("form", "form"), **entry))
    return FakeSession(user, model, text, events)


def sessions() -> list[FakeSession]:
    """Sessions with every kind of event at least once."""
    count = "one two three four five six seven eight nine ten"
    ask = {"kind": "request", "form": "ask.a"}
    return [
        build(
            [
                {**ask, "start_s": 1.0, "end_s": 2.03, "answer": "paris"},
                {"kind": "side_speech", "start_s": 4.0, "end_s": 5.5},
                {
                    "kind": "pause_request",
                    "start_s": 8.0,
                    "end_s": 10.11,
                    "answer": "four",
                    "pauses": ((8.7, 9.6),),
                    "held_out": True,
                },
            ]
        ),
        build(
            [
                {**ask, "start_s": 0.5, "end_s": 1.5, "answer": count},
                {"kind": "interrupt_stop", "start_s": 3.2, "end_s": 3.7},
                {**ask, "start_s": 6.0, "end_s": 7.0, "answer": "once upon a time"},
                {"kind": "interrupt_correction", "start_s": 8.1, "end_s": 9.2, "answer": "paris"},
                {"kind": "backchannel", "start_s": 12.0, "end_s": 12.3},
            ]
        ),
        build(
            [
                {**ask, "start_s": 0.5, "end_s": 1.5, "answer": count},
                {"kind": "backchannel", "start_s": 3.0, "end_s": 3.3},
                {"kind": "background", "start_s": 8.0, "end_s": 9.3},
                {**ask, "start_s": 11.0, "end_s": 12.0, "answer": "three"},
            ]
        ),
        build([{"kind": "noise", "start_s": 0.0, "end_s": 16.0}]),
    ]


class FakeModel:
    """Replies with prepared audio and text, row by row, to any input."""

    def __init__(self, audio: np.ndarray, text: np.ndarray) -> None:
        self.audio, self.text = audio, text

    def init_state(self, sessions: int, seed: np.ndarray) -> int:
        return 0

    def decode(self, ids: Sequence[int]) -> str:
        return decode(ids)

    def step(self, state: int, chunk: Chunk) -> tuple[int, Reply]:
        rows = len(chunk.audio)
        audio = self.audio[:rows, state * TURN : (state + 1) * TURN].astype(np.float32) / 32_768
        user_transcript = np.full((rows, 2), Special.NONE, np.int32)
        text = self.text[:rows, state]
        return state + 1, Reply(audio, text, user_transcript, np.zeros(rows, bool))


# Figures of a model that is always right: rates of 1, and rates of 0.
ONE = (
    "response_rate",
    "answer_exact",
    "interruption_stop_rate",
    "interruption_answer_exact",
    "backchannel_keep_rate",
    "other_speech_ignore_rate",
)
ZERO = ("pause_takeover_rate", "early_response_rate", "false_start_per_minute")


def oracle(made: list[FakeSession], delay: int = 0) -> FakeModel:
    """A model that says what the annotation wants, `delay` micro-turns late."""
    audio = np.stack([session.model for session in made])
    text = np.stack([session.text for session in made])
    if delay:
        audio = np.pad(audio, ((0, 0), (delay * TURN, 0)))[:, : -delay * TURN]
        text = np.pad(text, ((0, 0), (delay, 0)), constant_values=Special.SILENT)[:, :-delay]
    return FakeModel(audio, text)


def constant(made: list[FakeSession], level: float, token: int) -> FakeModel:
    """A model that always replies with noise of one level and with one token."""
    shape = (len(made), len(made[0].user))
    noise = np.random.default_rng(1).normal(0, level, shape).astype(np.int16)
    return FakeModel(noise, np.full((len(made), len(made[0].text)), token, np.int32))
