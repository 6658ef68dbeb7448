r"""Makes the recorded user of the demo: a minute with a voice that training does not have.

python -m experiments.make_recording --out=experiments/assets/user.flac
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags

from interaction.data import acoustics, clips, domain, timing
from interaction.data.audio_file import write_audio
from interaction.data.clips import RATE, Clip
from interaction.data.domain import tool_requests
from interaction.data.tokenizer import load_tokenizer
from interaction.data.voices import Voice

USER = Voice("espeak", "en-us+belinda", 150, 50)
OTHER = Voice("espeak", "en-gb-x-rp+Hugo", 165, 40)
LEVEL = 0.1  # root mean square of the user's speech, full scale is 1
PEAK = 0.8  # largest magnitude of a sample of the user's speech
OTHER_DB = -23.0  # level of the background speaker relative to the user, dB
NOISE_DB = -32.0  # level of the room's noise relative to the user, dB
GAP_S = 0.8  # time between the end of an answer and the user's next words, s
REASONING_S = 0.6  # assumed time of the background model beside its tool, s
TIME = "4:05"  # the time that the tool `clock` tells


class Script:
    """The user's side under construction, timed as if every answer came on time."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, np.ndarray]] = []  # first sample, PCM float32[samples]
        self.events: list[dict[str, Any]] = []  # annotations of what the user does
        self.notes: list[dict[str, Any]] = []  # annotations of the delegations
        self.prices = tool_requests.draw_prices(np.random.default_rng(0))
        self.now = 0.8  # time at which the user speaks next, s

    def say(self, text: str, at: float, voice: Voice = USER, gain_db: float = 0.0) -> Clip:
        """Adds speech.

        Args:
          text: Words.
          at: Time of its start, s.
          voice: Who speaks.
          gain_db: Level relative to the user, dB.
        """
        clip = clips.user_clip(text, voice)
        gain = min(LEVEL / clips.level(clip.pcm), PEAK / float(np.abs(clip.pcm).max()))
        gain *= 10 ** (gain_db / 20)
        self.parts.append((int(at * RATE), clip.pcm * np.float32(gain)))
        return clip

    def event(self, kind: str, form: str, start: float, end: float, text: str) -> dict[str, Any]:
        """Adds and returns the annotation of an event; times in seconds."""
        entry = {"kind": kind, "form": form, "start_s": start, "end_s": end, "text": text}
        self.events.append(entry)
        return entry

    def ask(self, name: str, kind: str = "request", pause: float = 0.0, **slots: str) -> float:
        """Lets the user ask something that needs no tool, at `now`.

        Args:
          name: Name of the request form.
          kind: Kind of the event.
          pause: Pause inside the request, where the form has one, s.
          **slots: Words for the slots of the form.

        Returns:
          Time at which the answer starts, s.
        """
        form = domain.form(name)
        parts = form.parts(slots) if pause else [form.text(slots)]
        start = at = self.now
        pauses = []
        for part in parts:
            if at > start:
                pauses.append([at, at + pause])
                at += pause
            at += self.say(part, at).seconds
        held_out = domain.is_held_out(form, slots)
        entry = self.event(kind, name, start, at, " ".join(parts))
        entry |= {"pauses": pauses, "held_out": held_out}
        return self.answer(entry, form.intent.answer(slots))

    def answer(self, entry: dict[str, Any], text: str) -> float:
        """Leaves time for the answer to an event; returns the time of its start, s."""
        clip = clips.assistant_clip(text)
        first = timing.answer_turn(round(entry["end_s"] * RATE))
        begun = timing.TURN * (first + 1) / RATE
        entry |= {
            "answer": clip.text,
            "answer_turn": first,
            "answer_end_turn": timing.answer_end_turn(first, len(clip.pcm)),
            "answer_end_s": begun + clip.seconds,
        }
        self.now = begun + clip.seconds + GAP_S
        return begun

    # Requests that need a tool.

    def tool_request(self, name: str, tool_s: float, **slots: str) -> dict[str, Any]:
        """Lets the user ask for something that needs a tool, at `now`.

        Args:
          name: Name of the tool request.
          tool_s: Duration of the tool call, s.
          **slots: Words for the slots of the request.

        Returns:
          The annotation of the delegation.
        """
        tool_request = next(one for one in tool_requests.TOOL_REQUESTS if one.name == name)
        note = {
            "number": len(self.notes) + 1,
            "tool_request": name,
            "held_out": tool_request.held_out(slots),
        }
        note |= {"updates": [], "cancelled_s": -1.0, "tool_s": tool_s}
        text = " ".join(tool_request.parts(tool_request.templates[0], slots))
        entry = self.speak_about(note, "tool_request", name, text, tool_request.hold)
        self.delegate(note, tool_request, slots, entry, tool_request.request.format(**slots))
        self.notes.append(note)
        return note

    def speak_about(
        self, note: dict[str, Any], kind: str, form: str, text: str, answer: str
    ) -> dict[str, Any]:
        """Adds speech about a delegation at `now`, and the short answer to it."""
        end = self.now + self.say(text, self.now).seconds
        entry = self.event(kind, form, self.now, end, text)
        entry |= {"delegation": note["number"], "held_out": note["held_out"]}
        self.answer(entry, answer)
        return entry

    def delegate(
        self,
        note: dict[str, Any],
        tool_request: tool_requests.ToolRequest,
        slots: domain.Slots,
        entry: dict[str, Any],
        words: str,
    ) -> None:
        """Leaves time for the span of the delegation, and annotates its call and result."""
        closed = entry["answer_end_turn"] + len(load_tokenizer().encode(words)) + 1
        self.now = max(self.now, timing.TURN * (closed + 2) / RATE + GAP_S / 2)
        call = tool_request.call(slots)
        result = tool_requests.true_result(call, self.prices, TIME)
        if call["tool"] == "timer":
            note["tool_s"] = float(call["amount"] * tool_requests.TIMER_UNITS[call["unit"]])
        request = tool_request.request.format(**slots)
        note |= {"request": request, "call": call, "result": result, "closed": closed}
        note |= {"said": tool_request.answer(slots, result), "slots": slots}

    def update(self, note: dict[str, Any], **better: str) -> None:
        """Lets the user correct a running delegation."""
        tool_request = next(
            one for one in tool_requests.TOOL_REQUESTS if one.name == note["tool_request"]
        )
        slots = note["slots"] | better
        words = tool_request.fix.format(**slots)
        text = f"{tool_requests.FIXERS[1]} {words}"
        entry = self.speak_about(
            note, "tool_request_update", "tool_request_update", text, tool_requests.OKAY
        )
        note["updates"].append({"end_s": entry["end_s"], "words": words})
        self.delegate(note, tool_request, slots, entry, words)

    def cancel(self, note: dict[str, Any]) -> None:
        """Lets the user cancel a running delegation."""
        text = tool_requests.CANCELS[0]
        entry = self.speak_about(
            note, "tool_request_cancel", "tool_request_cancel", text, tool_requests.OKAY
        )
        note["cancelled_s"] = entry["end_s"]

    def wait_for_result(self, note: dict[str, Any]) -> None:
        """Moves `now` behind the words of the result."""
        done = (note["closed"] + 1) * timing.TURN / RATE + note["tool_s"] + REASONING_S
        said = max(self.now - GAP_S, done) + clips.assistant_clip(note["said"]).seconds + 0.4
        self.now = max(self.now, said + GAP_S)

    def interrupt(self, onset: float) -> None:
        """Ends the last answer at an interruption at `onset` seconds, and moves `now` there."""
        answered = next(entry for entry in reversed(self.events) if entry.get("answer"))
        stop = answered["answer_end_turn"] = timing.stop_turn(int(onset * RATE))
        answered["answer_end_s"] = timing.TURN * (stop + 1) / RATE
        self.now = onset

    def aside(self, kind: str, text: str, at: float, voice: Voice = USER, db: float = 0.0) -> float:
        """Adds speech at `at` seconds that needs no answer; returns the time of its end, s."""
        end = at + self.say(text, at, voice, db).seconds
        self.event(kind, kind, at, end, text)
        return end

    def finish(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The mixed PCM, float32[samples] at 16 kHz, and its annotation."""
        turns = int(np.ceil(self.now * RATE / timing.TURN))
        pcm = acoustics.noise(
            np.random.default_rng(0), "pink", turns * timing.TURN, LEVEL * 10 ** (NOISE_DB / 20)
        ).astype(np.float32)
        for at, part in self.parts:
            pcm[at : at + len(part)] += part
        self.events.sort(key=lambda entry: entry["start_s"])
        meta = {"turns": turns, "voice": str(USER), "events": self.events}
        for note in self.notes:
            del note["slots"]
        return pcm, meta | {"delegations": self.notes, "prices": self.prices, "time": TIME}


def compose() -> tuple[np.ndarray, dict[str, Any]]:
    """The recording: other requests while a timer runs, a correction and a cancellation.

    It also has a pause, a backchannel, interruptions, another speaker, silence, a stop and a
    farewell.

    Returns:
      PCM float32[samples] at 16 kHz, and its annotation.
    """
    script = Script()
    bell = script.tool_request("timer", 0.0, n="eight", unit="seconds")
    script.ask("capital.1", country="japan")
    script.ask("repeat3.1", "pause_request", pause=0.9, a="purple", b="tiger", c="window")
    script.wait_for_result(bell)
    begun = script.ask("count.1", n="ten")
    script.aside("backchannel", "uh huh", begun + 1.3)
    price = script.tool_request("price", 4.0, item="butter")
    script.update(price, item="pepper")
    end = script.aside("background", "anna can you pass me the salt", script.now, OTHER, OTHER_DB)
    script.now = end
    script.wait_for_result(price)
    begun = script.ask("story.1", hero="dragon")
    script.interrupt(begun + 1.7)
    script.ask("sum.1", "interrupt_request", a="two", b="three")
    product = script.tool_request("times", 6.0, a="seven", b="eight")
    script.cancel(product)
    script.event("silence", "silence", script.now, script.now + 2.0, "")
    script.now += 2.0
    begun = script.ask("days.1")
    script.interrupt(begun + 1.5)
    script.now = script.aside("interrupt_stop", "okay stop", script.now) + 1.4
    script.ask("bye.1")
    return script.finish()


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string(
        "out", "experiments/assets/user.flac", "Recording; its annotation is beside it in .json."
    )


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
    for note in meta["delegations"]:
        note["cancelled_s"] = round(note["cancelled_s"], 4)
        for update in note["updates"]:
            update["end_s"] = round(update["end_s"], 4)
    path.with_suffix(".json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"wrote {path}: {len(pcm) / RATE:.1f} s, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    define_flags()
    app.run(main)
