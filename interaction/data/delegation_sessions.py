"""Sessions in which the model hands requests over, and the talk goes on until the result comes."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interaction.data import domain, reasoning_tokens, timing
from interaction.data.clips import RATE
from interaction.data.domain import Slots, asides, tool_requests
from interaction.data.domain.words import ROOMS
from interaction.data.sessions import Session, StoredSession
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

TEXT_SLOTS = 4  # tokens that arrive in a micro-turn at most
IMAGINED_SHARE = 0.6  # of the branches in training are of a request that nobody made
TWICE_SHARE = 0.3  # of the imagined requests that are corrected are corrected again
ANYTHING_SHARE = 0.6  # of the results in training are of nothing that was asked
THINKS_S = (0.3, 0.8)  # seconds the reasoner takes beside the tool
PAUSE_SHARE = 0.12  # of the errands are asked with a pause inside
OPENER_SHARE = 0.1  # of them begin with "um", "please" ...
MINUTES_SHARE = 0.6  # of the timers of minutes are kept: they never ring in a session
BUSY_SHARE = 0.6  # of the delegations have something happen before the result
ERROR_SHARE = 0.05  # of the calls fail, in training
ERRORS = ("timed out", "no such item", "cannot connect", "it is broken", "no answer")
NEAR_S = 0.6  # a result that comes this soon after the user might begin to speak is waited for
AFTER_RESULT_S = (1.2, 2.5)  # seconds of quiet after a result
MEANWHILE = {  # relative frequency of what happens while a tool works
    "request": 0.36,
    "backchannel_alone": 0.06,
    "side_speech": 0.1,
    "cancel": 0.3,
    "update": 0.4,
    "another": 0.1,
}


@functools.cache
def _words() -> list[str]:
    """Words that may stand for things that nobody asked for."""
    words = {*domain.answer_words(), *domain.said_words()}
    return sorted(words - {*tool_requests.VALUE})


def imagined_reasoning(
    tool_request: tool_requests.ToolRequest,
    slots: Slots,
    corrected: bool,
    error: str,
    time: str,
    rng: np.random.Generator,
) -> reasoning_tokens.Reasoning:
    """A branch of a request that nobody made, of things that nobody asks for.

    Args:
        tool_request: What kind of request.
        slots: Of the request, to begin from.
        corrected: Whether corrections follow it; then the errand can be corrected.
        error: How its tool fails, "" if it does not.
        time: Of day, "h:mm".
        rng: Draws.
    """
    slots = tool_requests.imagine(tool_request, slots, tuple(tool_request.slots), _words(), rng)
    spans = [(Special.DELEGATE, tool_request.request.format(**slots))]
    for _ in range(1 + int(rng.random() < TWICE_SHARE) if corrected else 0):
        slots = tool_requests.imagine(tool_request, slots, tool_request.changes, _words(), rng)
        spans.append((Special.UPDATE, tool_request.fix.format(**slots)))
    request, call = tool_request.request.format(**slots), tool_request.call(slots)
    result, said = {"error": error}, tool_requests.FAILURE
    if not error:
        price, room = int(rng.integers(1, 1_000)), ROOMS[int(rng.integers(len(ROOMS)))]
        table = {slots.get("item", ""): (price, room)}
        result = {"result": tool_requests.true_result(call, table, time)}
        said = tool_request.answer(slots, result["result"])
    return reasoning_tokens.reasoning_tokens(load_tokenizer(), spans, request, call, result, said)


@dataclasses.dataclass
class _Running:
    """A delegation whose result is still to come."""

    note: dict[str, Any]  # of the record's meta
    tool_request: tool_requests.ToolRequest
    slots: Slots
    spans: list[tuple[int, str]]  # (opening token, words) of what was handed over
    ready: int = 0  # micro-turn in which the result's first words arrive


class DelegationSession(Session):
    """A session under construction; see `Session`."""

    def __init__(self, rng: np.random.Generator, split: str, turns: int) -> None:
        super().__init__(rng, split, turns)
        self.prices = tool_requests.draw_prices(rng)
        self.time = f"{rng.integers(1, 13)}:{rng.integers(60):02d}"
        self.delegations: list[dict] = []
        self.arrivals: list[tuple[int, int]] = []
        self.arrive_turn = 0  # from which more text may arrive
        self.reasonings: list[tuple[int, reasoning_tokens.Reasoning]] = []
        self.corrected: list[tuple[int, reasoning_tokens.Reasoning]] = []
        self.quiet_from = 0.0  # seconds, when the model may speak unasked

    # Handing over.

    def span(self, first: int, opening: int, words: str) -> int:
        """Writes a span of control tokens; returns the micro-turn that closes it."""
        tokens = [opening, *load_tokenizer().encode(words), Special.END_DELEGATE]
        for turn, token in enumerate(tokens, first):
            if turn < self.turns:
                self.text[turn] = token
        return first + len(tokens) - 1

    def reply(self, entry: dict, text: str, opening: int, words: str = "") -> int:
        """Says something short, then hands words over; returns the micro-turn that ends it."""
        over = self.answer(entry, text)
        if opening == Special.CANCEL:
            last = entry["answer_end_turn"]
            if last < self.turns:
                self.text[last] = Special.CANCEL
        else:
            last = self.span(entry["answer_end_turn"], opening, words)
        self.quiet_from = max(over + 0.4, (last + 2) * timing.TURN / RATE)
        return last

    def tell(self, parts: Sequence[str], kind: str, name: str, **more: object) -> dict | None:
        """The user says something to the model, with pauses; None if it does not fit."""
        said = [self.say(part) for part in parts]
        gap = float(self.rng.uniform(0.5, 1.2))
        if not self.fits(self.now, gap * (len(said) - 1), *(clip.seconds for clip in said), 2.0):
            return None
        spans: list[tuple[float, float]] = []
        for clip in said:
            spans.append(self.place(clip, spans[-1][1] + gap if spans else self.now))
        pauses = [
            [round(before[1], 5), round(after[0], 5)] for before, after in itertools.pairwise(spans)
        ]
        whole = spans[0][0], spans[-1][1]
        return self.event(kind, name, whole, " ".join(parts), pauses=pauses, **more)

    def think(self, running: _Running, closed: int, tool_s: float) -> None:
        """Lets reasoner and tool work on what was handed over in micro-turn `closed`."""
        tool_request, slots = running.tool_request, running.slots
        call = tool_request.call(slots)
        if call["tool"] == "timer":
            tool_s = float(call["amount"] * tool_requests.TIMER_UNITS[call["unit"]])
        result: dict[str, Any] = {"result": tool_requests.true_result(call, self.prices, self.time)}
        if self.split == "train" and self.rng.random() < ERROR_SHARE:
            result = {"error": self.pick(ERRORS)}
        failed = "error" in result
        said = tool_requests.FAILURE if failed else tool_request.answer(slots, result["result"])
        delay = tool_s + float(self.rng.uniform(*THINKS_S))
        running.ready = timing.first_turn_after((closed + 1) * timing.TURN + int(delay * RATE))
        request = tool_request.request.format(**slots)
        for outcome in ("result", "error"):  # of what was corrected since
            running.note.pop(outcome, None)
        running.note.update(
            request=request, call=call, **result, said=said, tool_s=round(tool_s, 3), closed=closed
        )
        if closed < self.turns:
            made = self.reasonings if len(running.spans) == 1 else self.corrected
            made.append((closed + 1, self.reasoning(running)))
        if self.split == "train" and not failed and self.rng.random() < ANYTHING_SHARE:
            # What the answer must be is often known; the model is to say what arrives.
            running.note["said"] = tool_requests.imagine_answer(_words(), self.rng)

    def reasoning(self, running: _Running) -> reasoning_tokens.Reasoning:
        """What the reasoner reads and writes; in training often of another request.

        Users ask for few different things, which would be learnt by heart.
        """
        note, error = running.note, running.note.get("error", "")
        if self.split == "train" and self.rng.random() < IMAGINED_SHARE:
            corrected = len(running.spans) > 1
            return imagined_reasoning(
                running.tool_request, running.slots, corrected, error, self.time, self.rng
            )
        result = {"error": error} if error else {"result": note["result"]}
        return reasoning_tokens.reasoning_tokens(
            load_tokenizer(), running.spans, note["request"], note["call"], result, note["said"]
        )

    def ask_tool_request(self, tool_s: float) -> _Running | None:
        """The user asks for something that takes a tool, and the model hands it over."""
        while True:
            tool_request = tool_requests.draw_tool_request(self.rng)
            held_out = self.split == "heldout" and tool_request.name != "clock"
            slots = tool_requests.draw_slots(tool_request, self.rng, held_out)
            if slots.get("unit") != "minutes" or self.rng.random() < MINUTES_SHARE:
                break
        parts = tool_request.parts(self.pick(tool_request.templates), slots)
        if self.rng.random() > PAUSE_SHARE:
            parts = [" ".join(parts)]
        if self.rng.random() < OPENER_SHARE:
            parts[0] = f"{self.pick(asides.OPENERS)} {parts[0]}"
        number = len(self.delegations) + 1
        entry = self.tell(
            parts, "tool_request", tool_request.name, held_out=held_out, delegation=number
        )
        if entry is None:
            return None
        note = {"number": number, "tool_request": tool_request.name, "held_out": held_out}
        note |= {"updates": [], "cancelled_s": -1.0, "said_turn": -1, "said_end_s": -1.0}
        words = tool_request.request.format(**slots)
        running = _Running(note, tool_request, slots, [(Special.DELEGATE, words)])
        self.delegations.append(note)
        closed = self.reply(entry, tool_request.hold, Special.DELEGATE, words)
        self.think(running, closed, tool_s)
        return running

    # Meanwhile.

    def cancel(self, running: _Running) -> bool:
        """The user does not want it any more; False if there is no time for that."""
        text = self.pick(tool_requests.CANCELS)
        entry = self.in_time(running, text, "tool_request_cancel")
        if entry is None:
            return False
        self.reply(entry, tool_requests.OKAY, Special.CANCEL)
        running.note["cancelled_s"] = entry["end_s"]
        return True

    def update(self, running: _Running) -> bool:
        """The user corrects it; False if it has nothing to correct, or there is no time."""
        tool_request, slots = running.tool_request, running.slots
        if not tool_request.fix:
            return False
        better = tool_requests.draw_slots(tool_request, self.rng, running.note["held_out"])
        better = slots | {name: better[name] for name in tool_request.changes}
        words = tool_request.fix.format(**better)
        if better == slots or tool_request.held_out(better) != running.note["held_out"]:
            return False
        entry = self.in_time(
            running, f"{self.pick(tool_requests.FIXERS)} {words}", "tool_request_update"
        )
        if entry is None:
            return False
        closed = self.reply(entry, tool_requests.OKAY, Special.UPDATE, words)
        running.slots = better
        running.spans.append((Special.UPDATE, words))
        running.note["updates"].append({"end_s": entry["end_s"], "words": words})
        self.think(running, closed, running.note["tool_s"])
        return True

    def in_time(self, running: _Running, text: str, kind: str) -> dict | None:
        """The user says this, if it ends well before the result is there."""
        ready_s = running.ready * timing.TURN / RATE
        if self.now + self.say(text).seconds + 1.5 > ready_s:
            return None
        return self.tell([text], kind, kind, delegation=running.note["number"])

    def meanwhile(self, running: _Running) -> list[_Running] | None:
        """Something happens: the delegations that are left of `running` and new ones, or None."""
        names, shares = tuple(MEANWHILE), np.array(list(MEANWHILE.values()))
        act = names[self.rng.choice(len(names), p=shares / shares.sum())]
        if act == "cancel":
            return [] if self.cancel(running) else None
        if act == "update":
            return [running] if self.update(running) else None
        if act == "another":
            more = self.ask_tool_request(float(self.rng.uniform(0.2, 3.0)))
            return [running, more] if more else None
        if act == "request":
            form, slots = self.draw()
            done = self.ask(form, slots, self.now, paused=self.rng.random() < 0.15)
            if done is None:
                return None
            self.quiet_from = done[1] + 0.4
            return [running]
        quiet = self.side_speech() if act == "side_speech" else self.backchannel_alone()
        if not quiet:
            return None
        self.quiet_from = self.events[-1]["end_s"] + timing.ANSWER_WAIT / RATE
        return [running]

    # The result.

    def say_turn(self, running: _Running) -> int:
        """Micro-turn in which the result is begun, if nothing else happens."""
        quiet = timing.first_turn_after(int(self.quiet_from * RATE))
        return max(running.ready, self.arrive_turn, quiet)

    def deliver(self, running: _Running) -> bool:
        """Lets the result arrive and the model say it; False if the session ends before."""
        tokens = [*load_tokenizer().encode(running.note["said"]), Special.END_DELEGATE]
        turn = max(running.ready, self.arrive_turn)
        first = self.say_turn(running)
        if first + len(tokens) // TEXT_SLOTS + 1 >= self.turns:
            return False
        count = int(self.rng.integers(1, TEXT_SLOTS + 1))
        while tokens:
            for slot, token in enumerate(tokens[:count]):
                self.arrivals.append((turn * TEXT_SLOTS + slot, token))
            tokens, count, turn = tokens[count:], TEXT_SLOTS, turn + 1
        self.arrive_turn = turn
        end, over = self.speak(first, running.note["said"])
        running.note.update(said_turn=first, said_end_s=round(over, 5))
        running.note["whole"] = end <= self.turns
        self.quiet_from = over + 0.4
        self.now = over + float(self.rng.uniform(*AFTER_RESULT_S))
        return True

    def tool_request(self) -> bool:
        """A request that takes a tool, and whatever happens until its result is said."""
        acts = 1 + int(self.rng.random() < 0.3) if self.rng.random() < BUSY_SHARE else 0
        soon = 0.0 if self.rng.random() < 0.4 else float(self.rng.uniform(0.2, 4.0))
        first = self.ask_tool_request(float(self.rng.uniform(3.0, 7.0)) if acts else soon)
        if first is None:
            return False
        pending, tries = [first], 0
        while pending:
            pending.sort(key=lambda running: running.ready)
            self.now = self.quiet_from + float(self.rng.uniform(0.1, 1.5))
            said_s = (self.say_turn(pending[0]) + 1) * timing.TURN / RATE
            if acts and tries < 8 and said_s > self.now + NEAR_S:
                tries += 1
                newest = max(pending, key=lambda running: running.note["number"])
                left = self.meanwhile(newest)
                if left is not None:
                    acts -= 1
                    pending = [running for running in pending if running is not newest] + left
                continue
            if not self.deliver(pending.pop(0)):
                self.now = self.samples / RATE  # it comes after the session's end
                return True
        self.now = max(self.now, self.quiet_from + float(self.rng.uniform(0.2, 1.0)))
        return True

    def record(self, noise: str) -> StoredSession:
        """The finished session."""
        record = super().record(noise)
        meta = json.loads(record["meta"])
        meta |= {"delegations": self.delegations, "prices": self.prices, "time": self.time}
        record["meta"] = json.dumps(meta)
        record |= reasoning_tokens.arrival_arrays(self.arrivals[: reasoning_tokens.ARRIVALS])
        chosen = self.corrected or self.reasonings  # corrections are rare, and harder
        if chosen:
            record |= reasoning_tokens.reasoning_arrays(
                *chosen[int(self.rng.integers(len(chosen)))]
            )
        return record


def make_delegation_session(
    seed: Sequence[int],
    split: str = "train",
    turns: int = 80,
    like: Mapping[str, Any] | None = None,
) -> StoredSession:
    """Makes a session with errands and, in between, whatever else happens; see `make_session`.

    Args:
        seed: any integers >= 0.
        split: `train` or `heldout`.
        turns: length in micro-turns of 200 ms.
        like: meta of another session, whose "prices" and "time" the tools tell in this one too.
    """
    session = DelegationSession(np.random.default_rng(list(seed)), split, turns)
    if like is not None:
        session.prices, session.time = like["prices"], like["time"]
    session.talk("tool_request")
    return session.record(session.surroundings())
