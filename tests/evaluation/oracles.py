"""Models that say what an annotation wants, and agents that answer as it says."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from interaction import presets
from interaction.background.agent import CALL, DONE, RESULT, TEXT
from interaction.background.scripted import Line
from interaction.data import clips, timing
from interaction.data.tokenizer import load_tokenizer
from interaction.evaluation import parse_events
from interaction.pretrained import fingerprints
from interaction.types import Chunk, Reply, Special
from tests.evaluation import fakes


class Oracle(fakes.FakeModel):
    """Replies as stored sessions say, and decodes with the tokenizer of the demo."""

    def __init__(self, records: list[dict]) -> None:
        super().__init__(
            np.stack([record["model"] for record in records]),
            np.stack([record["text"] for record in records]),
        )

    def decode(self, ids: Sequence[int]) -> str:
        return load_tokenizer().decode(list(ids))


class LiveOracle:
    """For a `Conversation`: replies as the stored session of its seed says, then stays silent."""

    def __init__(self, records: dict[int, dict]) -> None:
        self.records = records
        self.config = dataclasses.replace(presets.tiny(), text_slots=4)
        self.params = {"weight": jnp.arange(4.0)}
        self.tokenizer = load_tokenizer()

    def init_state(self, sessions: int, seed: int = 0) -> tuple[int, int]:
        assert sessions == 1
        return self.init_row(seed)

    def init_row(self, seed: int) -> tuple[int, int]:
        return int(seed), 0

    def fingerprint(self) -> str:
        return fingerprints.fingerprint(self.config, self.params)

    def compile(self, sessions: int, *, frames: bool) -> None:
        pass

    def take_row(self, state: tuple[int, int], row: int) -> tuple[int, int]:
        return state

    def put_row(self, state: tuple[int, int], row: int, one: tuple[int, int]) -> tuple[int, int]:
        return one

    def step(self, state: tuple[int, int], chunk: Chunk) -> tuple[tuple[int, int], Reply]:
        seed, turn = self.init_row(chunk.seed[0]) if chunk.reset[0] else state
        record = self.records[seed]
        audio = np.zeros(3_200, np.int16)
        piece = record["model"][turn * 3_200 : (turn + 1) * 3_200]
        audio[: len(piece)] = piece
        text = record["text"][turn] if turn < len(record["text"]) else Special.SILENT
        user_transcript = np.full((1, 2), Special.NONE, np.int32)
        reply = Reply(
            audio[None].astype(np.float32) / 32_768,
            np.array([text], np.int32),
            user_transcript,
            np.zeros(1, bool),
        )
        return (seed, turn + 1), reply

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(one) for one in np.ravel(ids)])


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(1e-4)  # the threads that write records have their turn


def as_foreseen(meta: dict) -> Callable[[str], Iterable[Line]]:
    """The script of an agent that answers each request of a session at the annotated time."""
    lines = {}
    for note in meta["delegations"]:
        if note.get("said_turn", 0) < 0:
            continue
        wait = round(5 * (note["tool_s"] + 0.6))
        if "said_turn" in note:
            wait = note["said_turn"] - note["closed"] - 1
        words = note["updates"][-1]["words"] if note["updates"] else note["request"]
        lines[words] = [
            Line(0, CALL, json.dumps(note["call"])),
            Line(max(wait - 1, 0), RESULT, json.dumps({"result": note["result"]})),
            Line(0, TEXT, note["said"]),
            Line(0, DONE),
        ]
    return lambda words: lines.get(words, ())


def scripted(meta: dict, turns: int) -> dict[str, np.ndarray]:
    """The replies of a model that is right and on time, to an annotated recording."""
    tokenizer = load_tokenizer()
    model, text = np.zeros(turns * 3_200, np.float32), np.full(turns, Special.SILENT, np.int32)

    def say(first: int, words: str, end: int = turns) -> None:
        clip = clips.assistant_clip(words)
        end = min(end, timing.answer_end_turn(first, len(clip.pcm)))
        model[first * 3_200 :][: len(clip.pcm)] = clip.pcm
        tokens = timing.answer_tokens(tokenizer, clip, first, end)
        text[list(tokens)] = list(tokens.values())
        model[end * 3_200 :] = 0

    notes = {note["number"]: note for note in meta.get("delegations", ())}
    for event in parse_events(json.dumps(meta)):
        end = event.answer_end_turn
        if event.wants_answer:
            say(event.answer_turn, event.answer, end)
        if event.kind == "tool_request_cancel":
            text[end] = Special.CANCEL
        elif event.kind in ("tool_request", "tool_request_update"):
            note = notes[event.delegation]
            fixed = event.kind == "tool_request_update"
            words = note["updates"][-1]["words"] if fixed else note["request"]
            opening = Special.UPDATE if fixed else Special.DELEGATE
            tokens = [opening, *tokenizer.encode(words), Special.END_DELEGATE]
            text[end : end + len(tokens)] = tokens
    for note in notes.values():
        if note["cancelled_s"] < 0:
            first = note["closed"] + 2 + round(5 * (note["tool_s"] + 0.6))
            while (text[first - 3 : first] != Special.SILENT).any():
                first += 1
            before = model.copy()
            say(first, note["said"])
            model[before != 0] = before[before != 0]
    return {"model": (model * 32_767).astype(np.int16), "text": text}
