"""Sessions with tool requests, which the model delegates while the conversation goes on.

A tool request is what the user asks for. A delegation is what the model makes of it: it says a
holding reply, writes the request as a span of control tokens for the background model, and says the
result when its words arrive. Times are seconds of the user's clock unless said otherwise.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interaction.data import domain, reasoning_tokens, scenarios, timing
from interaction.data.clips import RATE
from interaction.data.domain import Slots, asides, tool_requests
from interaction.data.domain.words import ROOMS
from interaction.data.session_builder import SessionBuilder
from interaction.data.stored_session import StoredSession
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

TEXT_SLOTS = 4  # most tokens that arrive in a micro-turn
IMAGINED_SHARE = 0.6  # share of the forks in training whose request the user did not make
TWICE_SHARE = 0.3  # share of the corrected imagined requests that are corrected again
ANYTHING_SHARE = 0.6  # share of the results in training that do not belong to the request
THINKS_S = (0.3, 0.8)  # s, range of the time that the background model takes beside the tool
PAUSE_SHARE = 0.12  # share of the tool requests with a pause inside
OPENER_SHARE = 0.1  # share of the tool requests that begin with "um", "please" and the like
MINUTES_SHARE = 0.6  # share of the timers of minutes that are kept; they never ring in a session
BUSY_SHARE = 0.6  # share of the tool requests after which something happens before the result
ERROR_SHARE = 0.05  # share of the calls in training that fail
ERRORS = ("timed out", "no such item", "cannot connect", "it is broken", "no answer")
NEAR_S = 0.6  # s; nothing else is begun if the result is said so soon afterwards
AFTER_RESULT_S = (1.2, 2.5)  # s, range of the time from a result to the next speech of the user
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
    """Words that imagined requests and results use for things."""
    words = {*domain.answer_words(), *domain.said_words()}
    return sorted(words - {*tool_requests.VALUE})


def imagined_reasoning(
    request: tool_requests.ToolRequest,
    slots: Slots,
    corrected: bool,
    error: str,
    time: str,
    rng: np.random.Generator,
) -> reasoning_tokens.Reasoning:
    """Reasoning tokens of an imagined request, about things that no user asks for.

    Args:
      request: Kind of the request.
      slots: Values of its slots, which imagined ones replace.
      corrected: Whether corrections follow; only for requests that can be corrected.
      error: Error of the tool, "" without one.
      time: Time of day, "h:mm".
      rng: Source of the imagined values.
    """
    slots = tool_requests.imagine(request, slots, tuple(request.slots), _words(), rng)
    spans = [(Special.DELEGATE, request.delegated.format(**slots))]
    for _ in range(1 + int(rng.random() < TWICE_SHARE) if corrected else 0):
        slots = tool_requests.imagine(request, slots, request.changes, _words(), rng)
        spans.append((Special.UPDATE, request.fix.format(**slots)))
    understood, call = request.delegated.format(**slots), request.call(slots)
    result, said = {"error": error}, tool_requests.FAILURE
    if not error:
        price, room = int(rng.integers(1, 1_000)), ROOMS[int(rng.integers(len(ROOMS)))]
        table = {slots.get("item", ""): (price, room)}
        result = {"result": tool_requests.true_result(call, table, time)}
        said = request.answer(slots, result["result"])
    return reasoning_tokens.reasoning_tokens(
        load_tokenizer(), spans, understood, call, result, said
    )


@dataclasses.dataclass
class _Running:
    """A delegation whose result is still to come."""

    note: dict[str, Any]  # its entry in the "delegations" of the session's meta
    request: tool_requests.ToolRequest
    slots: Slots
    spans: list[tuple[int, str]]  # (opening token, words) of the request and its corrections
    ready: int = 0  # micro-turn in which the first words of the result arrive


class DelegationSessionBuilder(SessionBuilder):
    """A session with delegations, under construction."""

    def __init__(self, rng: np.random.Generator, split: str, turns: int) -> None:
        """See `SessionBuilder`."""
        super().__init__(rng, split, turns)
        self.prices = tool_requests.draw_prices(rng)
        self.time = f"{rng.integers(1, 13)}:{rng.integers(60):02d}"
        self.delegations: list[dict] = []  # notes, see `_Running`
        self.arrivals: list[tuple[int, int]] = []  # see `reasoning_tokens.arrival_arrays`
        self.arrive_turn = 0  # micro-turn from which further text can arrive
        # (micro-turns before the fork, its reasoning tokens), without and with corrections.
        self.forks: list[tuple[int, reasoning_tokens.Reasoning]] = []
        self.corrected_forks: list[tuple[int, reasoning_tokens.Reasoning]] = []
        self.quiet_from = 0.0  # s, from which the model may say a result

    # The model delegates.

    def write_span(self, first: int, opening: int, words: str) -> int:
        """Writes a span of control tokens; returns the micro-turn of its last token."""
        tokens = [opening, *load_tokenizer().encode(words), Special.END_DELEGATE]
        for turn, token in enumerate(tokens, first):
            if turn < self.turns:
                self.text[turn] = token
        return first + len(tokens) - 1

    def reply(self, entry: dict, text: str, opening: int, words: str = "") -> int:
        """Says a short reply and writes a span; returns the micro-turn of the span's last token."""
        over = self.answer(entry, text)
        if opening == Special.CANCEL:
            last = entry["answer_end_turn"]
            if last < self.turns:
                self.text[last] = Special.CANCEL
        else:
            last = self.write_span(entry["answer_end_turn"], opening, words)
        self.quiet_from = max(over + 0.4, (last + 2) * timing.TURN / RATE)
        return last

    def tell(self, parts: Sequence[str], kind: str, name: str, **more: object) -> dict | None:
        """Lets the user speak to the model, with pauses between the parts.

        Returns:
          The event; None if the session has no room.
        """
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

    def plan_result(self, running: _Running, closed: int, tool_s: float) -> None:
        """Fixes the call, the result and when it is ready, for a span that closes in `closed`."""
        request, slots = running.request, running.slots
        call = request.call(slots)
        if call["tool"] == "timer":
            tool_s = float(call["amount"] * tool_requests.TIMER_UNITS[call["unit"]])
        result: dict[str, Any] = {"result": tool_requests.true_result(call, self.prices, self.time)}
        if self.split == "train" and self.rng.random() < ERROR_SHARE:
            result = {"error": self.pick(ERRORS)}
        failed = "error" in result
        said = tool_requests.FAILURE if failed else request.answer(slots, result["result"])
        delay = tool_s + float(self.rng.uniform(*THINKS_S))
        running.ready = timing.first_turn_after((closed + 1) * timing.TURN + int(delay * RATE))
        for outcome in ("result", "error"):  # of the request before a correction
            running.note.pop(outcome, None)
        running.note.update(
            request=request.delegated.format(**slots),
            call=call,
            **result,
            said=said,
            tool_s=round(tool_s, 3),
            closed=closed,
        )
        if closed < self.turns:
            made = self.forks if len(running.spans) == 1 else self.corrected_forks
            made.append((closed + 1, self.reasoning(running)))
        if self.split == "train" and not failed and self.rng.random() < ANYTHING_SHARE:
            # The model could often tell the answer from the request. It has to say what arrives.
            running.note["said"] = tool_requests.imagine_answer(_words(), self.rng)

    def reasoning(self, running: _Running) -> reasoning_tokens.Reasoning:
        """The reasoning tokens of a delegation.

        In training they are often those of an imagined request, because the few requests that users
        make would be learnt by heart.
        """
        note, error = running.note, running.note.get("error", "")
        if self.split == "train" and self.rng.random() < IMAGINED_SHARE:
            corrected = len(running.spans) > 1
            return imagined_reasoning(
                running.request, running.slots, corrected, error, self.time, self.rng
            )
        result = {"error": error} if error else {"result": note["result"]}
        return reasoning_tokens.reasoning_tokens(
            load_tokenizer(), running.spans, note["request"], note["call"], result, note["said"]
        )

    def ask_tool_request(self, tool_s: float) -> _Running | None:
        """Lets the user make a tool request, and the model delegate it.

        Args:
          tool_s: Time that the tool takes; a timer takes its own time.

        Returns:
          The delegation; None if the session has no room.
        """
        while True:
            request = tool_requests.draw_tool_request(self.rng)
            held_out = self.split == "heldout" and request.name != "clock"
            slots = tool_requests.draw_slots(request, self.rng, held_out)
            if slots.get("unit") != "minutes" or self.rng.random() < MINUTES_SHARE:
                break
        parts = request.parts(self.pick(request.templates), slots)
        if self.rng.random() > PAUSE_SHARE:
            parts = [" ".join(parts)]
        if self.rng.random() < OPENER_SHARE:
            parts[0] = f"{self.pick(asides.OPENERS)} {parts[0]}"
        number = len(self.delegations) + 1
        entry = self.tell(parts, "tool_request", request.name, held_out=held_out, delegation=number)
        if entry is None:
            return None
        note = {"number": number, "tool_request": request.name, "held_out": held_out}
        note |= {"updates": [], "cancelled_s": -1.0, "said_turn": -1, "said_end_s": -1.0}
        words = request.delegated.format(**slots)
        running = _Running(note, request, slots, [(Special.DELEGATE, words)])
        self.delegations.append(note)
        closed = self.reply(entry, request.holding_reply, Special.DELEGATE, words)
        self.plan_result(running, closed, tool_s)
        return running

    # What happens before the result.

    def cancel(self, running: _Running) -> bool:
        """Lets the user cancel a delegation; False if there is no time before the result."""
        text = self.pick(tool_requests.CANCELS)
        entry = self.tell_in_time(running, text, "tool_request_cancel")
        if entry is None:
            return False
        self.reply(entry, tool_requests.OKAY, Special.CANCEL)
        running.note["cancelled_s"] = entry["end_s"]
        return True

    def update(self, running: _Running) -> bool:
        """Lets the user correct a delegation.

        Returns:
          False if it cannot be corrected, or if there is no time before the result.
        """
        request, slots = running.request, running.slots
        if not request.fix:
            return False
        better = tool_requests.draw_slots(request, self.rng, running.note["held_out"])
        better = slots | {name: better[name] for name in request.changes}
        words = request.fix.format(**better)
        if better == slots or request.held_out(better) != running.note["held_out"]:
            return False
        text = f"{self.pick(tool_requests.FIXERS)} {words}"
        entry = self.tell_in_time(running, text, "tool_request_update")
        if entry is None:
            return False
        closed = self.reply(entry, tool_requests.OKAY, Special.UPDATE, words)
        running.slots = better
        running.spans.append((Special.UPDATE, words))
        running.note["updates"].append({"end_s": entry["end_s"], "words": words})
        self.plan_result(running, closed, running.note["tool_s"])
        return True

    def tell_in_time(self, running: _Running, text: str, kind: str) -> dict | None:
        """Lets the user speak, if the speech ends at least 1.5 s before the result is ready."""
        ready_s = running.ready * timing.TURN / RATE
        if self.now + self.say(text).seconds + 1.5 > ready_s:
            return None
        return self.tell([text], kind, kind, delegation=running.note["number"])

    def meanwhile(self, running: _Running) -> list[_Running] | None:
        """Adds something that happens while the tool of `running` works.

        Returns:
          The delegations that run after it: `running` unless it was cancelled, and a new one if
          there is one. None if nothing was added.
        """
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
        if not scenarios.SCENARIOS[act].act(self):
            return None
        self.quiet_from = self.events[-1]["end_s"] + timing.ANSWER_WAIT / RATE
        return [running]

    # The result.

    def say_turn(self, running: _Running) -> int:
        """The micro-turn in which the model begins to say the result, if nothing else happens."""
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
        """The scenario of a tool request: all that happens until its result is said."""
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
                self.now = self.samples / RATE  # the result comes after the session's end
                return True
        self.now = max(self.now, self.quiet_from + float(self.rng.uniform(0.2, 1.0)))
        return True

    def record(self, noise: str) -> StoredSession:
        """The finished session, with one of its forks; `noise` is the name of its noise."""
        record = super().record(noise)
        meta = json.loads(record["meta"])
        meta |= {"delegations": self.delegations, "prices": self.prices, "time": self.time}
        record["meta"] = json.dumps(meta)
        record |= reasoning_tokens.arrival_arrays(self.arrivals[: reasoning_tokens.ARRIVALS])
        forks = self.corrected_forks or self.forks  # corrections are rare and harder to learn
        if forks:
            prefilled, reasoning = forks[int(self.rng.integers(len(forks)))]
            record |= reasoning_tokens.reasoning_arrays(prefilled, reasoning)
        return record


def make_delegation_session(
    seed: Sequence[int],
    split: str = "train",
    turns: int = 80,
    like: Mapping[str, Any] | None = None,
) -> StoredSession:
    """Makes a session with tool requests and other scenarios between them.

    The same arguments give the same bits.

    Args:
      seed: Any integers >= 0.
      split: `train` or `heldout`.
      turns: Length in micro-turns of 200 ms.
      like: Meta of another session, whose "prices" and "time" this session's tools return too.

    Returns:
      See `stored_session`; its meta has also "delegations", "prices" and "time".

    Raises:
      ValueError: The split is unknown.
      EngineMissing: espeak-ng or flite is not installed.
    """
    builder = DelegationSessionBuilder(np.random.default_rng(list(seed)), split, turns)
    if like is not None:
        builder.prices, builder.time = like["prices"], like["time"]
    scenarios.fill(builder, builder.tool_request)
    return builder.record(builder.surroundings())
