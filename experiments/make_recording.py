r"""Makes the recorded user that the demo listens to: 45 s of a voice that training never hears.

python -m experiments.make_recording --out=experiments/assets/user.flac
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags

from interaction.audio_file import write_audio
from interaction.data import acoustics, clips, domain, timing
from interaction.data.clips import RATE, Clip
from interaction.data.voices import Voice

USER = Voice("espeak", "en-us+belinda", 150, 50)
OTHER = Voice("espeak", "en-gb-x-rp+Hugo", 165, 40)
LEVEL = 0.1  # root mean square of the user's speech
PEAK = 0.8  # its loudest sample, at most
OTHER_DB = -23.0  # of the background speaker, below the user
NOISE_DB = -32.0  # of the room, below the user
GAP_S = 1.1  # between an answer's end and what the user says next


class Script:
    """The user's side under construction, timed as if every answer came on time."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, np.ndarray]] = []
        self.events: list[dict[str, Any]] = []
        self.now = 0.8  # seconds, when the user speaks next

    def say(self, text: str, at: float, voice: Voice = USER, gain_db: float = 0.0) -> Clip:
        """Adds speech at a time in seconds."""
        clip = clips.user_clip(text, voice)
        gain = min(LEVEL / clips.level(clip.pcm), PEAK / float(np.abs(clip.pcm).max()))
        gain *= 10 ** (gain_db / 20)
        self.parts.append((int(at * RATE), clip.pcm * np.float32(gain)))
        return clip

    def event(self, kind: str, form: str, start: float, end: float, text: str) -> dict[str, Any]:
        """Notes what is heard."""
        entry = {"kind": kind, "form": form, "start_s": start, "end_s": end, "text": text}
        self.events.append(entry)
        return entry

    def ask(self, name: str, kind: str = "request", pause: float = 0.0, **slots: str) -> float:
        """Asks at `now`, pausing where the form allows it; returns when the answer starts."""
        form = domain.form(name)
        parts = form.parts(slots) if pause else [form.text(slots)]
        start = at = self.now
        pauses = []
        for part in parts:
            if at > start:
                pauses.append([at, at + pause])
                at += pause
            at += self.say(part, at).seconds
        entry = self.event(kind, name, start, at, " ".join(parts))
        answer = clips.assistant_clip(form.intent.answer(slots))
        first = timing.answer_turn(round(at * RATE))
        begun = timing.TURN * (first + 1) / RATE
        entry |= {
            "answer": answer.text,
            "answer_turn": first,
            "answer_end_turn": timing.answer_end_turn(first, len(answer.pcm)),
            "answer_end_s": begun + answer.seconds,
            "pauses": pauses,
            "held_out": domain.is_held_out(form, slots),
        }
        self.now = begun + answer.seconds + GAP_S
        return begun

    def interrupt(self, onset: float) -> None:
        """Ends the last answer at an interruption, and lets the user speak there."""
        asked = next(entry for entry in reversed(self.events) if entry.get("answer"))
        stop = asked["answer_end_turn"] = timing.stop_turn(int(onset * RATE))
        asked["answer_end_s"] = timing.TURN * (stop + 1) / RATE
        self.now = onset

    def aside(self, kind: str, text: str, at: float, voice: Voice = USER, db: float = 0.0) -> float:
        """Says something that wants no answer; returns its end."""
        end = at + self.say(text, at, voice, db).seconds
        self.event(kind, kind, at, end, text)
        return end

    def finish(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The mix, float32[n], and its annotation."""
        turns = int(np.ceil(self.now * RATE / timing.TURN))
        pcm = acoustics.noise(
            np.random.default_rng(0), "pink", turns * timing.TURN, LEVEL * 10 ** (NOISE_DB / 20)
        ).astype(np.float32)
        for at, part in self.parts:
            pcm[at : at + len(part)] += part
        self.events.sort(key=lambda entry: entry["start_s"])
        return pcm, {"turns": turns, "voice": str(USER), "events": self.events}


def compose() -> tuple[np.ndarray, dict[str, Any]]:
    """A request, a pause, a backchannel, an interruption, others, silence, a stop, a farewell."""
    script = Script()
    script.ask("capital.1", country="japan")
    script.ask("timer.1", "pause_request", pause=0.9, n="twenty", unit="minutes")
    begun = script.ask("count.1", n="ten")
    script.aside("backchannel", "uh huh", begun + 1.3)
    begun = script.ask("story.1", hero="dragon")
    script.interrupt(begun + 1.7)
    script.ask("sum.1", "interrupt_request", a="two", b="three")
    end = script.aside("background", "anna can you pass me the salt", script.now, OTHER, OTHER_DB)
    script.event("silence", "silence", end + 0.5, end + 4.0, "")
    script.now = end + 4.2
    begun = script.ask("days.1")
    script.interrupt(begun + 1.5)
    script.now = script.aside("interrupt_stop", "okay stop", script.now) + 1.8
    script.ask("repeat3.1", a="purple", b="tiger", c="window")
    script.ask("bye.1")
    return script.finish()


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("out", "experiments/assets/user.flac", "Recording; annotated in .json.")


def main(argv: list[str]) -> None:
    """Writes the recording and its annotation."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    path = pathlib.Path(flags.FLAGS.out)
    pcm, meta = compose()
    write_audio(path, pcm)
    for entry in meta["events"]:
        for key in ("start_s", "end_s", "answer_end_s"):
            if key in entry:
                entry[key] = round(entry[key], 4)
        entry["pauses"] = [[round(t, 4) for t in pause] for pause in entry.get("pauses", [])]
    path.with_suffix(".json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"wrote {path}: {len(pcm) / RATE:.1f} s, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    define_flags()
    app.run(main)
