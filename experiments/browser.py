r"""Talks to the server's page in a real Chromium, whose microphone plays the bundled recording.

python -m experiments.browser --json=out/browser.json --screenshot=out/page.png

Starts `experiments.serve`, opens the page, presses Talk, and records what the page plays. The delay
from mouth to ear comes from the sound alone: what the microphone took and what the page played, on
the clock of the page's sound, against what the model heard and said, from the server's record.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from playwright.sync_api import Page, sync_playwright

from experiments.converse import ASSET
from experiments.figures_file import write_figures
from interaction.data.audio_file import read_audio, write_audio
from interaction.engine import session_record

_JSON = flags.DEFINE_string("json", "out/browser.json", "File for the figures.")
_SCREENSHOT = flags.DEFINE_string("screenshot", "out/page.png", "File for a picture of the page.")
_SOUND = flags.DEFINE_string("sound", "out/page.wav", "File for what the page played.")
_CHROMIUM = flags.DEFINE_string("chromium", "/usr/bin/chromium", "The browser.")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Length of the talk, s.")
RATE = 16_000
_LOUD = 0.01  # PCM beyond it is speech
_PIECE_S = 1.5  # s of sound that are found in another sound
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
    "--autoplay-policy=no-user-gesture-required",
)


class Heard(NamedTuple):
    """A talk on the page."""

    played: np.ndarray  # float32[n], what the page played
    played_s: float  # when its first sample was played, s on the clock of the page's sound
    sent: np.ndarray  # float32[m], what the microphone gave
    sent_s: float  # when its first sample came, s on the same clock
    first_sound_s: float  # from the page's session to its first speech, s
    session: str
    transcript: str


def talk(page: Page, address: str, seconds: float) -> Heard:
    """Opens the page, talks, and returns what was heard."""
    page.goto(f"http://{address}/?watch&store")
    page.wait_for_function("document.querySelectorAll('#examples li').length > 0")
    page.click("#talk")
    page.wait_for_function("window.talk.started > 0", timeout=30_000)
    session = page.evaluate("window.session()")
    time.sleep(seconds)
    page.screenshot(path=_SCREENSHOT.value, full_page=True)
    told = page.evaluate(
        "({played: window.talk.played.flatMap((block) => [...block]), at: window.talk.playedAt,"
        " sentAt: window.talk.sentAt, sent: [...window.heard()],"
        " sound: window.talk.firstSound - window.talk.started,"
        " text: document.querySelector('#transcript').innerText})"
    )
    page.click("#talk")
    page.wait_for_timeout(2_000)
    pcm = np.array(told["sent"], np.float32) / 32_768
    played = np.array(told["played"], np.float32)
    return Heard(
        played, told["at"], pcm, told["sentAt"], told["sound"] / 1_000, session, told["text"]
    )


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


def delays(heard: Heard, record: pathlib.Path) -> list[float]:
    """Delays from mouth to ear beyond the model's own, s, one for each time that it speaks.

    The model's own delay counts from the end of a micro-turn, which its reply follows.
    """
    turns = session_record.read(record).entries
    took = np.concatenate([turn.audio for turn in turns])
    said = np.concatenate([turn.speech for turn in turns])
    length, found = round(_PIECE_S * RATE), []
    for onset in onsets(said):
        speech = said[onset : onset + length]
        played = find(speech, heard.played)
        before = [place for place in onsets(took) if place < onset]
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


def run(folder: pathlib.Path) -> dict[str, Any]:
    """Serves, talks, and returns the figures."""
    began = time.monotonic()
    command = [sys.executable, "-m", "experiments.serve", "--port=0", f"--folder={folder}"]
    server = subprocess.Popen([*command, "--rows=2"], stdout=subprocess.PIPE, text=True)
    try:
        address = ""
        for line in server.stdout or ():
            found = re.search(r"open http://(\S+)", line)
            if found:
                address = found[1]
                break
        if not address:
            raise RuntimeError("the server did not start; run experiments.serve by hand")
        threading.Thread(target=collections.deque, args=(server.stdout, 0), daemon=True).start()
        ready = time.monotonic() - began
        microphone = folder / "microphone.wav"
        write_audio(microphone, read_audio(ASSET))
        with sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=_CHROMIUM.value,
                args=[*_FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"],
            )
            page = browser.new_page(viewport={"width": 900, "height": 1_000})
            opened = time.monotonic() - began
            heard = talk(page, address, _SECONDS.value)
            browser.close()
        found = delays(heard, folder / "records" / f"{heard.session}.session")
    finally:
        server.terminate()
        server.wait(30)
    write_audio(pathlib.Path(_SOUND.value), heard.played)
    return {
        "server_s": round(ready, 1),
        "first_word_s": round(opened + heard.first_sound_s, 1),
        "mouth_to_ear_p50_s": round(float(np.percentile(found, 50)), 3),
        "mouth_to_ear_p90_s": round(float(np.percentile(found, 90)), 3),
        "times_spoken": len(found),
        "transcript": heard.transcript,
    }


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    for path in (_JSON.value, _SCREENSHOT.value, _SOUND.value):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(pathlib.Path(folder))
    print(json.dumps(figures, indent=2))
    write_figures(figures, _JSON.value)


if __name__ == "__main__":
    app.run(main)
