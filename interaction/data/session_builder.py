"""Builds a session: places what user and model say on one clock, with tokens and annotations.

Times are seconds of the user's clock unless said otherwise, see `timing`. The scenarios that call
the builder are in `scenarios`.
"""

import json
from collections.abc import Sequence

import numpy as np

from interaction.data import acoustics, clips, domain, reasoning_tokens, timing, voices
from interaction.data.clips import RATE, Clip
from interaction.data.conversation_data import Word
from interaction.data.stored_conversation import pack_words
from interaction.data.stored_session import StoredSession
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

OPENER_SHARE = 0.15  # share of the requests that begin with "um", "please" and the like
# Share of the requests from compositional forms only; other requests come from all forms by weight.
COMPOSITIONAL_SHARE = {"train": 0.35, "heldout": 0.15}
LONG_GAP_SHARE = 0.1  # share of the gaps between scenarios that last 2 to 5 s instead of 0.3 to 2 s
LAST_END = 0.6  # s before the session's end by which the user has finished

LONG_FORMS = tuple(f for f in domain.FORMS if f.intent.long)
FIXABLE_FORMS = tuple(f for f in domain.FORMS if f.fixable)
LONG_FIXABLE_FORMS = tuple(f for f in LONG_FORMS if f.fixable)
COMPOSITIONAL_FORMS = tuple(f for f in domain.FORMS if f.intent.held_out)


class SessionBuilder:
    """A session under construction."""

    def __init__(self, rng: np.random.Generator, split: str, turns: int, tail: int = 0) -> None:
        """Draws the user's voice and level, and starts with silence.

        Args:
          rng: Source of all random numbers of the session.
          split: `train` or `heldout`.
          turns: Length in micro-turns.
          tail: Micro-turns at the end in which the user does not speak.

        Raises:
          ValueError: The split is unknown.
        """
        self.rng, self.split, self.turns = rng, split, turns
        self.samples = turns * timing.TURN
        self.last_end = (turns - tail) * timing.TURN / RATE - LAST_END  # s
        self.voice = voices.draw_voice(rng, split)
        self.rms = 10 ** (float(rng.uniform(-25, -15)) / 20)  # of the user's speech
        self.user = np.zeros(self.samples, np.float32)  # PCM of the user's side
        self.model = np.zeros(self.samples, np.float32)  # PCM of the replies, by their micro-turns
        self.text = np.full(turns, Special.SILENT, np.int32)
        self.spoken: list[tuple[int, Clip]] = []  # (start in samples, clip) of the user
        self.said: list[Word] = []  # words of the model, when they play
        self.events: list[dict] = []
        self.now = rng.uniform(0.2, 2.0)  # s, when the next scenario may begin

    # What is said.

    def say(self, text: str) -> Clip:
        """Speech of this session's user."""
        return clips.user_clip(text, self.voice)

    def pick(self, items: Sequence[str]) -> str:
        """Draws one of the items."""
        return items[int(self.rng.integers(len(items)))]

    def draw(
        self, forms: tuple[domain.Form, ...] = domain.FORMS
    ) -> tuple[domain.Form, domain.Slots]:
        """Draws a request; only the held-out split has held-out combinations."""
        if forms is domain.FORMS and self.rng.random() < COMPOSITIONAL_SHARE[self.split]:
            chosen = domain.draw_form(self.rng, COMPOSITIONAL_FORMS)
            held_out = self.split == "heldout"
            return chosen, domain.draw_slots(chosen, self.rng, held_out=held_out)
        chosen = domain.draw_form(self.rng, forms)
        return chosen, domain.draw_slots(chosen, self.rng, held_out=False)

    def changed(self, form: domain.Form, slots: domain.Slots) -> domain.Slots:
        """The same request with another value of the slot that a user may correct."""
        name = form.intent.fix
        options = [
            slots | {name: value} for value in form.intent.slots[name] if value != slots[name]
        ]
        allowed = [o for o in options if form.intent.valid(o) and not domain.is_held_out(form, o)]
        return allowed[int(self.rng.integers(len(allowed)))] if allowed else slots

    def aside(self) -> str:
        """Draws words for somebody else; only the held-out split has held-out ones."""
        while True:
            text = self.pick(domain.asides.SIDE_SPEECH)
            if self.split == "heldout" or not domain.asides.side_speech_held_out(text):
                return text

    # Where it is placed.

    def fits(self, start: float, *lengths: float) -> bool:
        """Whether something that starts at `start` and lasts the sum of `lengths` ends in time."""
        return start + sum(lengths) < self.last_end

    def place(self, clip: Clip, start: float) -> tuple[float, float]:
        """Adds a clip of the user, within 1.5 dB of the user's level; returns its start and end."""
        at = int(start * RATE)
        self.add(clip, at, self.rms * 10 ** (float(self.rng.uniform(-1.5, 1.5)) / 20))
        self.spoken.append((at, clip))
        return at / RATE, (at + len(clip.pcm)) / RATE

    def add(self, clip: Clip, at: int, rms: float) -> None:
        """Adds any voice to the user's side from sample `at` on, with a root mean square."""
        gain = min(rms / clips.level(clip.pcm), 0.9 / float(np.abs(clip.pcm).max()))
        self.user[at : at + len(clip.pcm)] += clip.pcm * np.float32(gain)

    def event(
        self, kind: str, form: str, span: tuple[float, float], text: str, **more: object
    ) -> dict:
        """Adds an event to the annotation and returns it; see `interaction.evaluation.events`."""
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
        """Lets the model say something from micro-turn `first` on.

        Returns:
          The first micro-turn after it, and the time at which its last sound has played.
        """
        clip = clips.assistant_clip(text)
        end = timing.answer_end_turn(first, len(clip.pcm))
        at = first * timing.TURN
        kept = clip.pcm[: max(self.samples - at, 0)]
        self.model[at : at + len(kept)] = kept
        for turn, token in timing.answer_tokens(load_tokenizer(), clip, first, end).items():
            if turn < self.turns:
                self.text[turn] = token
        self.said += _words(at + timing.TURN, clip)
        return end, (at + timing.TURN + len(clip.pcm)) / RATE

    def answer(self, entry: dict, text: str) -> float:
        """Lets the model answer an event; returns the time at which the answer has played."""
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
        """Cuts the answer to an event for an interruption at `onset`.

        Returns:
          The time from which the model is silent.
        """
        stop = min(timing.stop_turn(int(onset * RATE)), self.turns)
        silent = (stop + 1) * timing.TURN / RATE
        if stop < entry["answer_end_turn"]:
            at, fade = stop * timing.TURN, RATE // 100
            self.model[at - fade : at] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
            self.model[at:] = 0.0
            self.text[stop:] = Special.SILENT
            self.said = _until(self.said, silent - timing.END_MARGIN / RATE)
            entry["answer_end_turn"] = stop
            entry["answer_end_s"] = min(entry["answer_end_s"], silent)
        return silent

    def rest(self, since: float) -> None:
        """Sets `now` to a random time after `since`."""
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
        """Places a request and its answer.

        Args:
          form: Phrasing of the request.
          slots: Values of its slots.
          start: When the user begins.
          kind: Kind of the event; a request with a pause becomes a `pause_request`.
          words: What the user says instead of the form's own words.
          paused: Whether the user pauses where the form allows it.

        Returns:
          The event, and the time at which the answer has played; None if the session has no room.
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
        """Places a request at `now` whose answer lasts longer than 1.3 s.

        Returns:
          The event, the times at which its answer starts and has played, its form and its slots;
          None if the session has no room.
        """
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

    # The whole session.

    def surroundings(self) -> str:
        """Adds the microphone, the room and noise to the user's side; returns the noise's name."""
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
        """The finished session; `noise` is the name of its noise."""
        self.events.sort(key=lambda entry: entry["start_s"])
        self.spoken.sort(key=lambda item: item[0])
        user = [word for start, clip in self.spoken for word in _words(start, clip)]
        end = (self.turns + 1) * timing.TURN / RATE
        meta = {
            "turns": self.turns,
            "words": pack_words(_until(user, end), _until(sorted(self.said, key=_start), end)),
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


def _words(start: int, clip: Clip) -> list[Word]:
    """The words of a clip that starts at a sample."""
    times = zip(clip.text.split(), clip.onsets.tolist(), clip.ends.tolist(), strict=True)
    return [Word(text, start / RATE + onset, start / RATE + end) for text, onset, end in times]


def _start(word: Word) -> float:
    return word.start


def _until(words: list[Word], end: float) -> list[Word]:
    """The words that start before a time; the last one ends then at the latest."""
    return [word._replace(end=min(word.end, end)) for word in words if word.start < end]


def _int16(pcm: np.ndarray) -> np.ndarray:
    """PCM float32[n] in [-1, 1] to int16[n]."""
    return np.round(np.clip(pcm, -1.0, 1.0) * 32_767).astype(np.int16)
