r"""Talks to the server's page in a real Chromium, whose microphone plays the bundled recording.

python -m experiments.browser --json=out/browser.json --screenshot=out/page.png

Starts `experiments.serve`, opens the page, presses Talk, and records what the page plays. The delay
from mouth to ear comes from the sound alone: what the microphone took and what the page played, on
the clock of the page's sound, against what the model heard and said, from the server's record.
A recogniser reads what the page played, and its words are compared with the page's transcript. It
fails if the page has an error, is too slow or is not understood.
"""

import json
import pathlib
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from playwright.sync_api import Page

from experiments.chromium import RATE, begin_talk, fake_microphone, open_page, read_pcm, serving
from experiments.figures_file import write_figures
from interaction.data.audio_file import read_audio, write_audio
from interaction.data.bundled_user import ASSET
from interaction.data.domain import answer_words
from interaction.engine import session_record
from interaction.evaluation.recognizer import talk_accuracy

# The slowest that a page may be, s, and the fewest words that may be recognised, of all.
MOST_S = {"mouth_to_ear_p50_s": 0.25, "mouth_to_ear_p90_s": 0.40}
LEAST_RECOGNISED = 0.25
_LOUD = 0.01  # PCM beyond it is speech
_PIECE_S = 1.5  # s of sound that are found in another sound


class Heard(NamedTuple):
    """A talk on the page."""

    played: np.ndarray  # float32[n], what the page played
    played_s: float  # when its first sample was played, s on the clock of the page's sound
    sent: np.ndarray  # float32[m], what the microphone gave
    sent_s: float  # when its first sample came, s on the same clock
    first_sound_s: float  # from the page's session to its first speech, s
    session: str
    transcript: str


def talk(page: Page, address: str, seconds: float, screenshot: str) -> Heard:
    """Opens the page, talks, takes a picture, and returns what was heard."""
    session = begin_talk(page, address)
    time.sleep(seconds)
    page.screenshot(path=screenshot, full_page=True)
    sent, played = read_pcm(page, "window.heard()"), read_pcm(page, "window.played()")
    told = page.evaluate(
        "({at: window.talk.playedAt, sentAt: window.talk.sentAt,"
        " sound: window.talk.firstSound - window.talk.started,"
        " text: document.querySelector('#transcript').innerText})"
    )
    page.click("#talk")
    page.wait_for_timeout(2_000)
    first = told["sound"] / 1_000
    return Heard(played, told["at"], sent, told["sentAt"], first, session, told["text"])


def find(piece: np.ndarray, whole: np.ndarray) -> int | None:
    """The place of a piece float32[n] in float32[m]; None if it is not there."""
    if len(whole) < len(piece):
        return None
    size = 1 << int(np.ceil(np.log2(len(whole) + len(piece))))
    product = np.fft.rfft(whole, size) * np.conj(np.fft.rfft(piece, size))
    score = np.fft.irfft(product, size)[: len(whole) - len(piece) + 1]
    energy = np.cumsum(np.concatenate([[0.0], np.square(whole, dtype=np.float64)]))
    energy = energy[len(piece) :] - energy[: -len(piece)]
    score = score / (np.sqrt(np.maximum(energy, 1e-9)) * np.linalg.norm(piece))
    place = int(np.argmax(score))
    return place if score[place] > 0.8 else None


def onsets(pcm: np.ndarray) -> list[int]:
    """The first samples of speech after half a second of silence, in float32[n]."""
    loud = np.flatnonzero(np.abs(pcm) > _LOUD)
    if not len(loud):
        return []
    first = np.concatenate([[True], np.diff(loud) > RATE // 2])
    return [int(place) for place in loud[first]]


def delays(heard: Heard, took: np.ndarray, said: np.ndarray) -> list[float]:
    """Delays from mouth to ear beyond the model's own, s, one for each time that it speaks.

    The model's own delay counts from the end of a micro-turn, which its reply follows.

    Args:
      heard: The talk.
      took: float32[n], what the model took, from the record.
      said: float32[n], what it said.
    """
    length, found = round(_PIECE_S * RATE), []
    for onset in onsets(said):
        speech = said[onset : onset + length]
        played = find(speech, heard.played)
        before = [place for place in onsets(took) if place <= onset]
        if played is None or not before or len(speech) < length:
            continue
        mouth = find(took[before[-1] : before[-1] + length], heard.sent)
        if mouth is None:
            continue
        # Both on the clock of the page's sound, minus the time between them for the model.
        ear_s = heard.played_s + played / RATE
        mouth_s = heard.sent_s + mouth / RATE
        model_s = (onset - before[-1]) / RATE + 0.2
        found.append(ear_s - mouth_s - model_s)
    return found


def said_text(transcript: str) -> str:
    """The model's words in a transcript of the page."""
    lines = [line.partition(": ") for line in transcript.splitlines()]
    return " ".join(words for side, _, words in lines if side == "model")


def run(folder: pathlib.Path) -> dict[str, Any]:
    """Serves, talks, and returns the figures."""
    given = flags.FLAGS
    began = time.monotonic()
    with serving(folder) as address:
        ready = time.monotonic() - began
        microphone = folder / "microphone.wav"
        write_audio(microphone, read_audio(ASSET))
        with open_page(given.chromium, fake_microphone(microphone)) as page:
            opened = time.monotonic() - began
            heard = talk(page, address, given.seconds, given.screenshot)
        turns = session_record.read(folder / "records" / f"{heard.session}.session").entries
    took = np.concatenate([turn.audio for turn in turns])
    said = np.concatenate([turn.speech for turn in turns])
    found = delays(heard, took, said)
    if not found:
        raise RuntimeError(f"the page did not speak; it wrote {heard.transcript!r}")
    write_audio(pathlib.Path(given.sound), heard.played)
    text, words = said_text(heard.transcript), answer_words()
    return {
        "server_s": round(ready, 1),
        "first_word_s": round(opened + heard.first_sound_s, 1),
        "mouth_to_ear_p50_s": round(float(np.percentile(found, 50)), 3),
        "mouth_to_ear_p90_s": round(float(np.percentile(found, 90)), 3),
        "times_spoken": len(found),
        "recognised": round(talk_accuracy(text, heard.played, words) or 0.0, 3),
        "recognised_in_record": round(talk_accuracy(text, said, words) or 0.0, 3),
        "words": len(text.split()),
        "transcript": heard.transcript,
    }


def missed(figures: dict[str, Any]) -> list[str]:
    """What is worse than wanted, in words."""
    slow = [
        f"{name}: got {figures[name]} s, wanted at most {most} s"
        for name, most in MOST_S.items()
        if figures[name] > most
    ]
    if figures["recognised"] >= LEAST_RECOGNISED:
        return slow
    return [*slow, f"recognised: got {figures['recognised']}, wanted at least {LEAST_RECOGNISED}"]


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("json", "out/browser.json", "File for the figures.")
    flags.DEFINE_string("screenshot", "out/page.png", "File for a picture of the page.")
    flags.DEFINE_string("sound", "out/page.wav", "File for what the page played.")
    flags.DEFINE_string("chromium", "/usr/bin/chromium", "The browser.")
    flags.DEFINE_float("seconds", 60.0, "Length of the talk, s.")


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    for path in (given.json, given.screenshot, given.sound):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(pathlib.Path(folder))
    print(json.dumps(figures, indent=2))
    write_figures(figures, given.json)
    if wrong := missed(figures):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    define_flags()
    app.run(main)
