"""Full-duplex sessions: a user who asks, pauses, interrupts and digresses, and the right replies.

Behaviours follow the categories of Full-Duplex-Bench (arXiv 2503.04721, 2507.23159).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interaction.data import acoustics, clips, domain, reasoning_tokens, timing, voices
from interaction.data.clips import RATE, Clip
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

StoredSession = dict[str, Any]

SCENARIOS = {  # relative frequency of what happens next
    "plain": 0.42,
    "pause": 0.26,
    "self_fix": 0.05,
    "stop": 0.12,
    "interrupt_request": 0.09,
    "correction": 0.06,
    "follow_up": 0.03,
    "backchannel": 0.18,
    "backchannel_alone": 0.06,
    "side_speech": 0.07,
    "background": 0.06,
    "background_over": 0.04,
}
QUIET = ("silence", "noise")  # whole sessions without a word
QUIET_SHARE = 0.08
OPENER_SHARE = 0.15  # of the requests begin with "um", "please" ...
COMPOSITIONAL_SHARE = {"train": 0.35, "heldout": 0.15}  # of the requests, beyond their weight
LONG_GAP_SHARE = 0.1
LAST_END = 0.6  # seconds before the session's end when the user's last words end

LONG_FORMS = tuple(f for f in domain.FORMS if f.intent.long)
FIXABLE_FORMS = tuple(f for f in domain.FORMS if f.fixable)
LONG_FIXABLE_FORMS = tuple(f for f in LONG_FORMS if f.fixable)
COMPOSITIONAL_FORMS = tuple(f for f in domain.FORMS if f.intent.held_out)


class Session:
    """A session under construction; a scenario returns False if it no longer fits."""

    def __init__(self, rng: np.random.Generator, split: str, turns: int, tail: int = 0) -> None:
        self.rng, self.split, self.turns = rng, split, turns
        self.samples = turns * timing.TURN
        self.last_end = (turns - tail) * timing.TURN / RATE - LAST_END  # seconds
        self.voice = voices.draw_voice(rng, split)
        self.rms = 10 ** (float(rng.uniform(-25, -15)) / 20)
        self.user = np.zeros(self.samples, np.float32)
        self.model = np.zeros(self.samples, np.float32)
        self.text = np.full(turns, Special.SILENT, np.int32)
        self.spoken: list[tuple[int, Clip]] = []
        self.events: list[dict] = []
        self.now = rng.uniform(0.2, 2.0)  # seconds, when the next thing may begin

    # What is said.

    def say(self, text: str) -> Clip:
        """A clip of this session's user."""
        return clips.user_clip(text, self.voice)

    def pick(self, items: Sequence[str]) -> str:
        """One of the items."""
        return items[int(self.rng.integers(len(items)))]

    def draw(
        self, forms: tuple[domain.Form, ...] = domain.FORMS
    ) -> tuple[domain.Form, domain.Slots]:
        """A request: held-out combinations only ever in the held-out split."""
        if forms is domain.FORMS and self.rng.random() < COMPOSITIONAL_SHARE[self.split]:
            chosen = domain.draw_form(self.rng, COMPOSITIONAL_FORMS)
            held_out = self.split == "heldout"
            return chosen, domain.draw_slots(chosen, self.rng, held_out=held_out)
        chosen = domain.draw_form(self.rng, forms)
        return chosen, domain.draw_slots(chosen, self.rng, held_out=False)

    def changed(self, form: domain.Form, slots: domain.Slots) -> domain.Slots:
        """The same wish with another value of the slot that can be corrected."""
        name = form.intent.fix
        options = [
            slots | {name: value} for value in form.intent.slots[name] if value != slots[name]
        ]
        allowed = [o for o in options if form.intent.valid(o) and not domain.is_held_out(form, o)]
        return allowed[int(self.rng.integers(len(allowed)))] if allowed else slots

    def aside(self) -> str:
        """Words for somebody else, held-out ones only in the held-out split."""
        while True:
            text = self.pick(domain.asides.SIDE_SPEECH)
            if self.split == "heldout" or not domain.asides.side_speech_held_out(text):
                return text

    # Where it goes.

    def fits(self, start: float, *lengths: float) -> bool:
        """Whether something of these lengths, begun at `start`, ends in time."""
        return start + sum(lengths) < self.last_end

    def place(self, clip: Clip, start: float, rms: float | None = None) -> tuple[float, float]:
        """Adds the user's clip to the mix; returns its start and end in seconds."""
        at = int(start * RATE)
        self.add(clip, at, self.rms * 10 ** (float(self.rng.uniform(-1.5, 1.5)) / 20))
        self.spoken.append((at, clip))
        return at / RATE, (at + len(clip.pcm)) / RATE

    def add(self, clip: Clip, at: int, rms: float) -> None:
        """Adds any voice to the user's side at a level."""
        gain = min(rms / clips.level(clip.pcm), 0.9 / float(np.abs(clip.pcm).max()))
        self.user[at : at + len(clip.pcm)] += clip.pcm * np.float32(gain)

    def event(
        self, kind: str, form: str, span: tuple[float, float], text: str, **more: object
    ) -> dict:
        """Notes something that happened."""
        entry = {
            "kind": kind,
            "form": form,
            "start_s": round(span[0], 5),
            "end_s": round(span[1], 5),
            "text": text,
            "answer": "",
            "answer_turn": -1,
            "answer_end_turn": -1,
            "answer_end_s": -1.0,
            "pauses": [],
            "held_out": False,
        } | more
        self.events.append(entry)
        return entry

    def speak(self, first: int, text: str) -> tuple[int, float]:
        """Says something from micro-turn `first` on.

        Returns:
            The first micro-turn after it, and when its last sound has played on the user's clock.
        """
        clip = clips.assistant_clip(text)
        end = timing.answer_end_turn(first, len(clip.pcm))
        at = first * timing.TURN
        kept = clip.pcm[: max(self.samples - at, 0)]
        self.model[at : at + len(kept)] = kept
        for turn, token in timing.answer_tokens(load_tokenizer(), clip, first, end).items():
            if turn < self.turns:
                self.text[turn] = token
        return end, (at + timing.TURN + len(clip.pcm)) / RATE

    def answer(self, entry: dict, text: str) -> float:
        """Gives the answer to a request; returns when it ends on the user's clock."""
        first = timing.answer_turn(round(entry["end_s"] * RATE))
        end, over = self.speak(first, text)
        entry.update(
            answer=text,
            answer_turn=first,
            answer_end_turn=min(end, self.turns),
            answer_end_s=round(min(over, (self.turns + 1) * timing.TURN / RATE), 5),
        )
        return over

    def cut(self, entry: dict, onset: float) -> float:
        """Silences a running answer for an interruption; returns when it is silent."""
        stop = min(timing.stop_turn(int(onset * RATE)), self.turns)
        silent = (stop + 1) * timing.TURN / RATE
        if stop < entry["answer_end_turn"]:
            at, fade = stop * timing.TURN, RATE // 100
            self.model[at - fade : at] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
            self.model[at:] = 0.0
            self.text[stop:] = Special.SILENT
            entry["answer_end_turn"] = stop
            entry["answer_end_s"] = min(entry["answer_end_s"], silent)
        return silent

    def rest(self, since: float) -> None:
        """Lets some time pass."""
        span = (2.0, 5.0) if self.rng.random() < LONG_GAP_SHARE else (0.3, 2.0)
        self.now = since + self.rng.uniform(*span)

    # Requests.

    def ask(
        self,
        form: domain.Form,
        slots: domain.Slots,
        start: float,
        kind: str = "request",
        words: str = "",
        paused: bool = False,
    ) -> tuple[dict, float] | None:
        """Places a request and its answer; returns the event and the answer's end in seconds.

        `words` replaces the form's own words; `paused` pauses where the form allows it.
        """
        parts = form.parts(slots) if paused else [words or form.text(slots)]
        if kind == "request" and not words and self.rng.random() < OPENER_SHARE:
            parts[0] = f"{self.pick(domain.asides.OPENERS)} {parts[0]}"
        said = [self.say(part) for part in parts]
        gap = float(self.rng.uniform(0.5, 1.2)) if len(said) > 1 else 0.0
        if not self.fits(start, gap, *(clip.seconds for clip in said)):
            return None
        first = span = self.place(said[0], start)
        pauses = []
        if len(said) > 1:
            span = self.place(said[1], first[1] + gap)
            pauses = [[round(first[1], 5), round(span[0], 5)]]
        name = form.name + ("+fix" if words else "")
        entry = self.event(
            "pause_request" if pauses else kind,
            name,
            (first[0], span[1]),
            " ".join(parts),
            pauses=pauses,
            held_out=domain.is_held_out(form, slots),
        )
        return entry, self.answer(entry, form.intent.answer(slots))

    def long_answer(
        self, forms: tuple[domain.Form, ...] = LONG_FORMS
    ) -> tuple[dict, float, float, domain.Form, domain.Slots] | None:
        """A request with a long answer: (event, answer's start and end in s, form, slots)."""
        for _ in range(8):
            form, slots = self.draw(forms)
            seconds = clips.assistant_clip(form.intent.answer(slots)).seconds
            if seconds > 1.3 and self.fits(self.now, 2.2, min(seconds, 1.5)):
                done = self.ask(form, slots, self.now)
                if done is None:
                    return None
                start = (done[0]["answer_turn"] + 1) * timing.TURN / RATE
                return done[0], start, done[1], form, slots
        return None

    # Scenarios.

    def plain(self) -> bool:
        """A request."""
        done = self.ask(*self.draw(), self.now)
        if done:
            self.rest(done[1])
        return bool(done)

    def pause(self) -> bool:
        """A request with a pause inside."""
        form, slots = self.draw()
        if len(form.parts(slots)) < 2:
            return False
        done = self.ask(form, slots, self.now, paused=True)
        if done:
            self.rest(done[1])
        return bool(done)

    def self_fix(self) -> bool:
        """A request that corrects itself before it ends."""
        form, slots = self.draw(FIXABLE_FORMS)
        better = self.changed(form, slots)
        fixer = self.pick(domain.asides.SELF_FIXES)
        words = f"{form.text(slots)} {fixer} {better[form.intent.fix]}"
        done = self.ask(form, better, self.now, words=words)
        if done:
            self.rest(done[1])
        return bool(done)

    def onset(self, start: float, end: float) -> float:
        """When somebody speaks into an answer that lasts from `start` to `end` seconds."""
        return float(self.rng.uniform(start + 0.4, min(start + 2.5, end - 0.4)))

    def stop(self) -> bool:
        """A long answer and somebody who has heard enough."""
        words = self.say(self.pick(domain.asides.STOPS))
        begun = self.long_answer()
        if begun is None:
            return False
        onset = self.onset(begun[1], begun[2])
        self.now = begun[2]
        if not self.fits(onset, words.seconds):
            return True
        span = self.place(words, onset)
        silent = self.cut(begun[0], span[0])
        self.event("interrupt_stop", "stop", span, words.text)
        self.rest(max(span[1], silent))
        return True

    def interrupt(self, correction: bool) -> bool:
        """A long answer cut short by another request, or by a correction of the first."""
        begun = self.long_answer(LONG_FIXABLE_FORMS if correction else LONG_FORMS)
        if begun is None:
            return False
        entry, start, end, form, slots = begun
        onset = self.onset(start, end)
        words = ""
        if correction:
            slots = self.changed(form, slots)
            words = f"{self.pick(domain.asides.CORRECTIONS)} {slots[form.intent.fix]}"
        else:
            form, slots = self.draw()
        model, text, before = self.model.copy(), self.text.copy(), entry.copy()
        self.cut(entry, int(onset * RATE) / RATE)
        kind = "interrupt_correction" if correction else "interrupt_request"
        done = self.ask(form, slots, onset, kind=kind, words=words)
        if done is None:  # no room for it: the first answer goes on
            self.model, self.text = model, text
            entry.update(before)
        self.rest(done[1] if done else end)
        return True

    def interrupt_request(self) -> bool:
        """A long answer cut short by another request."""
        return self.interrupt(correction=False)

    def correction(self) -> bool:
        """A long answer cut short by a correction of the request."""
        return self.interrupt(correction=True)

    def follow_up(self) -> bool:
        """A correction of the request after its answer."""
        form, slots = self.draw(FIXABLE_FORMS)
        done = self.ask(form, slots, self.now)
        if done is None:
            return False
        better = self.changed(form, slots)
        words = f"{self.pick(domain.asides.CORRECTIONS)} {better[form.intent.fix]}"
        again = self.ask(form, better, done[1] + self.rng.uniform(0.3, 1.0), words=words)
        self.rest(again[1] if again else done[1])
        return True

    def backchannel(self) -> bool:
        """A long answer and a listener who makes himself heard once or twice."""
        begun = self.long_answer()
        if begun is None:
            return False
        _, start, end, _, _ = begun
        onset = start + self.rng.uniform(0.3, 1.2)
        for _ in range(1 + int(self.rng.random() < 0.4)):
            words = self.say(self.pick(domain.asides.BACKCHANNELS))
            if onset < end - 0.2 and self.fits(onset, words.seconds):
                span = self.place(words, onset)
                self.event("backchannel", "backchannel", span, words.text)
                end = max(end, span[1])
                onset = span[1] + self.rng.uniform(0.5, 1.5)
        self.rest(end)
        return True

    def aloud(self, kind: str, form: str, text: str, held_out: bool = False) -> bool:
        """The user says something that wants no answer."""
        words = self.say(text)
        if not self.fits(self.now, words.seconds):
            return False
        span = self.place(words, self.now)
        self.event(kind, form, span, text, held_out=held_out)
        self.rest(span[1] + 0.3)
        return True

    def backchannel_alone(self) -> bool:
        """A backchannel to nothing, or a stop when nothing is running."""
        stops = self.rng.random() < 0.15
        text = self.pick(domain.asides.STOPS if stops else domain.asides.BACKCHANNELS)
        return self.aloud("backchannel", "stop_alone" if stops else "backchannel_alone", text)

    def side_speech(self) -> bool:
        """The user talks to somebody else."""
        text = self.aside()
        held_out = domain.asides.side_speech_held_out(text)
        return self.aloud("side_speech", "side_speech", text, held_out)

    def other_voice(self, start: float) -> tuple[float, float] | None:
        """Somebody in the background, 20 to 26 dB below the user; returns the span in seconds."""
        other = voices.draw_voice(self.rng, self.split)
        if self.rng.random() < 0.5:
            text = self.aside()
        else:
            form, slots = self.draw()
            text = form.text(slots)
        clip = clips.user_clip(text, other)
        if not self.fits(start, clip.seconds):
            return None
        at = int(start * RATE)
        self.add(clip, at, self.rms * 10 ** (float(self.rng.uniform(-26, -20)) / 20))
        span = at / RATE, (at + len(clip.pcm)) / RATE
        self.event("background", "background", span, text, voice=str(other))
        return span

    def background(self) -> bool:
        """Somebody in the background while nobody else speaks."""
        span = self.other_voice(self.now)
        if span:
            self.rest(span[1] + 0.3)
        return bool(span)

    def background_over(self) -> bool:
        """Somebody in the background during a long answer."""
        begun = self.long_answer()
        if begun is None:
            return False
        span = self.other_voice(begun[1] + self.rng.uniform(0.1, 1.0))
        self.rest(max(begun[2], span[1] if span else 0.0))
        return True

    # The whole.

    def quiet(self, kind: str) -> None:
        """Nobody speaks; `noise` has something else to hear."""
        span = (0.0, self.samples / RATE)
        self.event(kind, kind, span, "")
        if kind == "noise":
            colour = self.pick(acoustics.NOISES)
            rms = 10 ** (float(self.rng.uniform(-60, -30)) / 20)
            self.user += acoustics.noise(self.rng, colour, self.samples, rms)

    def talk(self, scenario: str | None) -> None:
        """Fills the session with scenarios, most of them the given one."""
        names = tuple(SCENARIOS)
        shares = np.array(list(SCENARIOS.values()))
        shares /= shares.sum()
        failures = 0
        while failures < 6 and self.fits(self.now, 0.3):
            name = names[self.rng.choice(len(names), p=shares)]
            if scenario and (not self.events or self.rng.random() < 0.6):
                name = scenario
            done: Callable[[], bool] = getattr(self, name)
            failures = 0 if done() else failures + 1

    def surroundings(self) -> str:
        """Adds the microphone, the room and noise to the user's side; says which noise."""
        if self.rng.random() < 0.3:
            self.user = acoustics.tilt(self.user, float(self.rng.uniform(-0.4, 0.4)))
        if self.rng.random() < 0.2:
            self.user = acoustics.reverberate(self.rng, self.user)
        if self.rng.random() < 0.2:
            return "none"
        colour, snr = self.pick(acoustics.NOISES), float(self.rng.uniform(12, 45))
        self.user += acoustics.noise(self.rng, colour, self.samples, self.rms * 10 ** (-snr / 20))
        return f"{colour} {snr:.0f} dB"

    def record(self, noise: str) -> StoredSession:
        """The finished session."""
        self.events.sort(key=lambda entry: entry["start_s"])
        self.spoken.sort(key=lambda item: item[0])
        meta = {
            "turns": self.turns,
            "split": self.split,
            "voice": str(self.voice),
            "noise": noise,
            "events": self.events,
        }
        return {
            "user": _int16(self.user),
            "model": _int16(self.model),
            "text": self.text,
            "user_transcript": timing.transcript_tokens(load_tokenizer(), self.spoken, self.turns),
            **reasoning_tokens.reasoning_arrays(0, []),
            **reasoning_tokens.arrival_arrays([]),
            "meta": json.dumps(meta),
        }


def _int16(pcm: np.ndarray) -> np.ndarray:
    return np.round(np.clip(pcm, -1.0, 1.0) * 32_767).astype(np.int16)


def make_session(
    seed: Sequence[int],
    split: str = "train",
    scenario: str | None = None,
    turns: int = 80,
    tail: int = 0,
) -> StoredSession:
    """Makes one session; the same arguments give the same bits.

    Args:
        seed: any integers >= 0.
        split: `train`, or `heldout` with voices and word combinations that training never has.
        scenario: a name of `SCENARIOS` or `QUIET` that this session should show, first of all.
        turns: length in micro-turns of 200 ms.
        tail: of these, how many at the end in which nobody speaks but the model.

    Returns:
        user int16[turns * 3200], model int16[turns * 3200] on the reply clock, text int32[turns],
        heard int32[turns, 2], meta JSON; and the fields of `reasonings`, which are empty.

    Raises:
        ValueError: the split or the scenario is unknown.
        EngineMissing: espeak-ng or flite is not installed.
    """
    if scenario is not None and scenario not in (*SCENARIOS, *QUIET):
        raise ValueError(
            f"scenario: got {scenario!r}, wanted one of {(*SCENARIOS, *QUIET)}; name one of them"
        )
    session = Session(np.random.default_rng(list(seed)), split, turns, tail)
    quiet = scenario in QUIET or (scenario is None and session.rng.random() < QUIET_SHARE)
    if quiet:
        kind = scenario or session.pick(QUIET)
        session.quiet(kind)
        return session.record(kind)
    session.talk(scenario)
    return session.record(session.surroundings())
