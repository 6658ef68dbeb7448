r"""Makes the recording of the demo: a minute of a user whose voice training never has.

python -m experiments.make_recording --out=interaction/data/user.flac
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
LEVEL = 0.1  # root mean square of the user's speech, of full scale
PEAK = 0.8  # highest sample of the user's speech
OTHER_DB = -23.0  # dB, level of the background speaker relative to the user
NOISE_DB = -32.0  # dB, level of the room's noise relative to the user
GAP_S = 0.8  # s from the end of an answer to what the user says next
REASONING_S = 0.6  # s that the background model takes beside its tool
TIME = "4:05"  # time of day that the tool `clock` returns


class Script:
    """The user's side under construction, timed as if every answer came on time.

    Times are seconds of the user's clock unless said otherwise.
    """

    def __init__(self) -> None:
        """Starts with silence."""
        self.parts: list[tuple[int, np.ndarray]] = []  # (first sample, PCM float32[n])
        self.events: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.prices = tool_requests.draw_prices(np.random.default_rng(0))
        self.now = 0.8  # s, when the user speaks next

    def say(self, text: str, at: float, voice: Voice = USER, gain_db: float = 0.0) -> Clip:
        """Adds speech at a time."""
        clip = clips.user_clip(text, voice)
        gain = min(LEVEL / clips.level(clip.pcm), PEAK / float(np.abs(clip.pcm).max()))
        gain *= 10 ** (gain_db / 20)
        self.parts.append((int(at * RATE), clip.pcm * np.float32(gain)))
        return clip

    def event(self, kind: str, form: str, start: float, end: float, text: str) -> dict[str, Any]:
        """Adds an event to the annotation and returns it."""
        entry = {"kind": kind, "form": form, "start_s": start, "end_s": end, "text": text}
        self.events.append(entry)
        return entry

    def ask(self, name: str, kind: str = "request", pause: float = 0.0, **slots: str) -> float:
        """Places a request at `now`.

        Args:
          name: Name of the form.
          kind: Kind of the event.
          pause: Length of the pause where the form allows one, s; 0 for none.
          **slots: Values of the form's slots.

        Returns:
          When the answer starts.
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
        """Leaves time for the answer to an event; returns when it starts."""
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

    # Tool requests.

    def tool_request(self, name: str, tool_s: float, **slots: str) -> dict[str, Any]:
        """Places a tool request at `now`.

        Args:
          name: Name of the tool request.
          tool_s: Time that the tool takes; a timer takes its own time.
          **slots: Values of the request's slots.

        Returns:
          The note of the delegation.
        """
        request = find_request(name)
        note = {
            "number": len(self.notes) + 1,
            "tool_request": name,
            "held_out": request.held_out(slots),
        }
        note |= {"updates": [], "cancelled_s": -1.0, "tool_s": tool_s}
        text = " ".join(request.parts(request.templates[0], slots))
        entry = self.tell(note, "tool_request", name, text, request.holding_reply)
        self.delegate(note, request, slots, entry, request.delegated.format(**slots))
        self.notes.append(note)
        return note

    def tell(
        self, note: dict[str, Any], kind: str, form: str, text: str, answer: str
    ) -> dict[str, Any]:
        """Places speech about a delegation at `now`, with the short reply `answer` to it."""
        end = self.now + self.say(text, self.now).seconds
        entry = self.event(kind, form, self.now, end, text)
        entry |= {"delegation": note["number"], "held_out": note["held_out"]}
        self.answer(entry, answer)
        return entry

    def delegate(
        self,
        note: dict[str, Any],
        request: tool_requests.ToolRequest,
        slots: domain.Slots,
        entry: dict[str, Any],
        words: str,
    ) -> None:
        """Leaves time for the span with `words`, and notes the call and the result."""
        closed = entry["answer_end_turn"] + len(load_tokenizer().encode(words)) + 1
        self.now = max(self.now, timing.TURN * (closed + 2) / RATE + GAP_S / 2)
        call = request.call(slots)
        result = tool_requests.true_result(call, self.prices, TIME)
        if call["tool"] == "timer":
            note["tool_s"] = float(call["amount"] * tool_requests.TIMER_UNITS[call["unit"]])
        understood = request.delegated.format(**slots)
        note |= {"request": understood, "call": call, "result": result, "closed": closed}
        note |= {"said": request.answer(slots, result), "slots": slots}

    def update(self, note: dict[str, Any], **better: str) -> None:
        """Lets the user correct a running tool request, to slots with the values `better`."""
        request = find_request(note["tool_request"])
        slots = note["slots"] | better
        words = request.fix.format(**slots)
        text = f"{tool_requests.FIXERS[1]} {words}"
        kind = "tool_request_update"
        entry = self.tell(note, kind, kind, text, tool_requests.OKAY)
        note["updates"].append({"end_s": entry["end_s"], "words": words})
        self.delegate(note, request, slots, entry, words)

    def cancel(self, note: dict[str, Any]) -> None:
        """Lets the user cancel a running tool request."""
        kind = "tool_request_cancel"
        entry = self.tell(note, kind, kind, tool_requests.CANCELS[0], tool_requests.OKAY)
        note["cancelled_s"] = entry["end_s"]

    def wait_for_result(self, note: dict[str, Any]) -> None:
        """Moves `now` to when the model has said the result."""
        done = (note["closed"] + 1) * timing.TURN / RATE + note["tool_s"] + REASONING_S
        said = max(self.now - GAP_S, done) + clips.assistant_clip(note["said"]).seconds + 0.4
        self.now = max(self.now, said + GAP_S)

    def interrupt(self, onset: float) -> None:
        """Ends the last answer for an interruption, and moves `now` to its onset."""
        entry = next(entry for entry in reversed(self.events) if entry.get("answer"))
        stop = entry["answer_end_turn"] = timing.stop_turn(int(onset * RATE))
        entry["answer_end_s"] = timing.TURN * (stop + 1) / RATE
        self.now = onset

    def aside(self, kind: str, text: str, at: float, voice: Voice = USER, db: float = 0.0) -> float:
        """Places speech that needs no answer; returns when it ends."""
        end = at + self.say(text, at, voice, db).seconds
        self.event(kind, kind, at, end, text)
        return end

    def finish(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The finished recording.

        Returns:
          The mixed PCM, float32[n] at 16 kHz, and its annotation: "turns", "voice", "events",
          "delegations", "prices" and "time".
        """
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


def find_request(name: str) -> tool_requests.ToolRequest:
    """The tool request of a name."""
    return next(one for one in tool_requests.TOOL_REQUESTS if one.name == name)


def compose() -> tuple[np.ndarray, dict[str, Any]]:
    """Composes the recording.

    The user makes small talk while a timer runs, corrects and cancels tool requests, pauses,
    interrupts, stops the model, is silent and says goodbye; there is a backchannel, and somebody
    else speaks in the background.

    Returns:
      PCM float32[n] at 16 kHz, and the annotation, see `Script.finish`.
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
    """Defines the flags. Not at import, so that tests can import several commands."""
    flags.DEFINE_string(
        "out", "interaction/data/user.flac", "Recording; its annotation has the suffix .json."
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
