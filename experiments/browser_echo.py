r"""Talks to the page in Chromium in a room where the microphone hears the loudspeaker.

python -m experiments.browser_echo --json=out/browser_echo.json

The page plays into a sink of PulseAudio, whose monitor comes back to its microphone at -12 dB. Into
the same microphone a user asks something every twelve seconds. It is done three times: with
headphones, that is without the way back; with the browser's echo canceller; and without it. A
self-answer is speech of the model beyond the one answer to a request. Needs Debian's packages
chromium, pulseaudio and pulseaudio-utils.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from experiments.chromium import RATE, begin_talk, open_page, serving
from experiments.figures_file import write_figures
from interaction.data.audio_file import read_audio, write_audio
from interaction.data.bundled_user import ASSET
from interaction.data.tokenizer import load_tokenizer
from interaction.engine import session_record
from interaction.evaluation import activity
from interaction.evaluation.events import TURN_S, reply_time
from interaction.evaluation.transcript import Word, transcript_words, words_over_time
from interaction.types import Special

EVERY_S = 12.0  # s from one request to the next; the longest answer lasts 4 s
ECHO_DB = -12
_LATE_S = 1.5  # s after a request in which its words may still be transcribed
_PAUSE_S = 1.0  # s of silence that end an utterance
_KINDS = ("request", "pause_request", "interrupt_request")
_ROOM = """
load-module module-native-protocol-unix socket={socket} auth-anonymous=1
load-module module-null-sink sink_name=loudspeaker rate=48000 channels=1
load-module module-null-sink sink_name=room rate=48000 channels=1
load-module module-remap-source master=room.monitor source_name=microphone
load-module module-loopback source=loudspeaker.monitor sink=room latency_msec=30
set-default-sink loudspeaker
set-default-source microphone
"""
_NO_CANCELLER = """
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = ({ audio }) =>
  ask({ audio: { ...audio, echoCancellation: false } });
"""


class Asked(NamedTuple):
    """A request, s on the clock of the session."""

    start_s: float
    end_s: float
    answer: str


@contextlib.contextmanager
def room(folder: pathlib.Path) -> Generator[dict[str, str]]:
    """Runs a PulseAudio of its own; yields the environment of programs that use it.

    Its sink `loudspeaker` and its source `microphone` are the defaults; what is played into its
    sink `room` is heard by the microphone as well.

    Raises:
      RuntimeError: PulseAudio is missing, or does not start.
    """
    if not shutil.which("pulseaudio") or not shutil.which("pactl"):
        raise RuntimeError("PulseAudio is missing; apt-get install pulseaudio pulseaudio-utils")
    socket, script = folder / "socket", folder / "room.pa"
    script.write_text(_ROOM.format(socket=socket))
    surroundings = os.environ | {"PULSE_SERVER": f"unix:{socket}", "XDG_RUNTIME_DIR": str(folder)}
    command = ["pulseaudio", "-n", "-F", str(script), "--exit-idle-time=-1", "--log-level=error"]
    daemon = subprocess.Popen([*command, "--use-pid-file=no"], env=surroundings)
    try:
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("PulseAudio did not start within 10 s")
        yield surroundings
    finally:
        daemon.terminate()
        daemon.wait(10)


def set_echo(surroundings: dict[str, str], factor: float) -> None:
    """Sets how loud the microphone hears the loudspeaker, a factor of the amplitude."""
    command = ["pactl", "list", "short", "sink-inputs"]
    told = subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
    loopback = told.stdout.split()[0]
    command = ["pactl", "set-sink-input-volume", loopback, f"{factor:.4f}"]
    subprocess.run(command, env=surroundings, check=True)


def make_user(seconds: float) -> tuple[np.ndarray, list[Asked]]:
    """The requests of the bundled recording that need no tool, one after another.

    Args:
      seconds: Length of the talk, s.

    Returns:
      PCM float32[n], and the requests.
    """
    recording = read_audio(ASSET)
    events = json.loads(ASSET.with_suffix(".json").read_text())["events"]
    requests = [event for event in events if event["kind"] in _KINDS]
    pcm, asked = np.zeros(round(seconds * RATE), np.float32), []
    for number in range(int(seconds / EVERY_S)):
        event = requests[number % len(requests)]
        piece = recording[round(event["start_s"] * RATE) : round(event["end_s"] * RATE)]
        start_s = number * EVERY_S
        place = round(start_s * RATE)
        pcm[place : place + len(piece)] = piece
        asked.append(Asked(start_s, start_s + len(piece) / RATE, event["answer"]))
    return pcm, asked


def score(
    asked: Sequence[Asked], heard: Sequence[Word], said: Sequence[Word], speech: np.ndarray
) -> dict[str, Any]:
    """Counts what came beyond the answers.

    Args:
      asked: The requests, `EVERY_S` apart.
      heard: The model's transcript of the user.
      said: Its own words.
      speech: float32[n], its PCM, on the clock of the session.

    Returns:
      A dict for JSON: "requests", "right_answers", "self_answers" (utterances of the model after
      the first one that follows a request), "heard_alone" (words of the user's transcript while the
      user was silent).
    """
    utterances = activity.merge(activity.active_intervals(speech), _PAUSE_S)
    right = more = 0
    for one in asked:
        end_s = one.start_s + EVERY_S
        spoken = [word.text for word in said if one.start_s <= word.time_s < end_s]
        right += " ".join(spoken) == one.answer
        begun = [start for start, _ in utterances if one.start_s <= start < end_s]
        more += max(0, len(begun) - 1)
    alone = [
        word.text
        for word in heard
        if not any(one.start_s <= word.time_s <= one.end_s + _LATE_S for one in asked)
    ]
    return {
        "requests": len(asked),
        "right_answers": right,
        "self_answers": more,
        "heard_alone": alone,
    }


def echo_level(
    asked: Sequence[Asked], took: np.ndarray, said: np.ndarray
) -> dict[str, float | None]:
    """How loud the microphone was while the model alone spoke, in dB of the model's own level.

    Args:
      asked: The requests, in which the user speaks.
      took: float32[n], the sound of the microphone.
      said: float32[n], the sound of the model, on the same clock.
    """
    frames = len(said) // RATE
    took, said = (sound[: frames * RATE].reshape(-1, RATE) for sound in (took, said))
    level, loud = np.mean(took**2, axis=1), np.mean(said**2, axis=1)
    starts = np.arange(frames)
    alone = (loud > 1e-3) & ~np.any(
        [(starts > one.start_s - 2) & (starts < one.end_s + 1) for one in asked], axis=0
    )
    if not alone.any():
        return {"echo_db": None}
    part = level[alone].mean() / loud[alone].mean()
    return {"echo_db": round(10 * float(np.log10(part + 1e-9)), 1)}


def read_talk(path: pathlib.Path, began: float, asked: Sequence[Asked]) -> dict[str, Any]:
    """The figures of a record.

    Args:
      path: The record.
      began: When the user's sound began, s since the epoch.
      asked: The requests, on the clock of the user's sound.
    """
    turns = session_record.read(path).entries
    shift = began - (turns[0].time - TURN_S)
    asked = [one._replace(start_s=one.start_s + shift, end_s=one.end_s + shift) for one in asked]
    decode = load_tokenizer().decode
    heard = transcript_words(np.stack([turn.user_transcript for turn in turns]), decode)
    times = [reply_time(number) for number in range(len(turns))]
    said = words_over_time([turn.text for turn in turns], times, decode)
    speech = np.concatenate([turn.speech for turn in turns])
    speech = np.concatenate([np.zeros(round(times[0] * RATE), np.float32), speech])
    took = np.concatenate([turn.audio for turn in turns])
    # No request needs a tool.
    delegated = {"delegations": sum(turn.text == Special.DELEGATE for turn in turns)}
    found = score(asked, heard, said, speech) | delegated
    return found | echo_level(asked, took, speech[: len(took)])


def run(folder: pathlib.Path) -> dict[str, Any]:
    """Serves, talks three times, and returns the figures."""
    given = flags.FLAGS
    pcm, asked = make_user(given.seconds)
    user = folder / "user.wav"
    write_audio(user, pcm)
    kinds = {
        "headphones": (0, ""),
        "canceller_on": (10 ** (ECHO_DB / 20), ""),
        "canceller_off": (10 ** (ECHO_DB / 20), _NO_CANCELLER),
    }
    found: dict[str, Any] = {"seconds": given.seconds, "echo_path_db": ECHO_DB}
    with room(folder) as surroundings, serving(folder) as address:
        for kind, (factor, setup) in kinds.items():
            set_echo(surroundings, factor)
            with open_page(given.chromium, (), setup, surroundings) as page:
                session = begin_talk(page, address)
                page.wait_for_timeout(2_000)
                began = time.time()
                player = ["pacat", "--device=room", "--file-format=wav", str(user)]
                subprocess.run(player, env=surroundings, check=True)
                page.click("#talk")
                page.wait_for_timeout(2_000)
            record = folder / "records" / f"{session}.session"
            found[kind] = read_talk(record, began, asked)
            print(kind, json.dumps(found[kind]), flush=True)
    return found


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("json", "out/browser_echo.json", "File for the figures.")
    flags.DEFINE_string("chromium", "/usr/bin/chromium", "The browser.")
    flags.DEFINE_float("seconds", 300.0, "Length of each talk, s.", lower_bound=EVERY_S)


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    with tempfile.TemporaryDirectory() as folder:
        write_figures(run(pathlib.Path(folder)), flags.FLAGS.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
