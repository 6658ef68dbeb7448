r"""Streams a recorded user through a model, as live, and shows what happened.

python -m experiments.converse --input=user.wav --checkpoint=demo --out=out
"""

import pathlib
import sys

import numpy as np
from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.compilation import use_compilation_cache
from interaction.audio_file import read_audio, write_audio
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.events import Event
from interaction.evaluation.rollout import TURN, Listener, Rollout, rollout
from interaction.evaluation.transcript import Conversation, converse, transcript

ASSET = pathlib.Path(__file__).parent / "assets" / "user.flac"


def read_events(audio: pathlib.Path, given: str | None) -> list[Event]:
    """Reads the annotation beside a recording; [] if there is none.

    Raises:
      ValueError: if the file was named and is missing, or cannot be read.
    """
    path = pathlib.Path(given) if given else audio.with_suffix(".json")
    if not path.is_file():
        if given:
            raise ValueError(f"events {path}: got no such file, wanted a JSON file; check the path")
        return []
    return parse_events(path.read_text())


def listen(model: Listener, user: np.ndarray, seed: int) -> Rollout:
    """Streams float32[n] through a model, micro-turn by micro-turn, with a progress bar."""
    warm = np.zeros(2 * TURN, np.float32)
    rollout(model, [warm], [seed])  # compiles, so that step times are those of a running model
    with tqdm(total=-(-len(user) // TURN), desc="listening", unit="turn") as progress:
        return rollout(model, [user], [seed], lambda _: progress.update())[0]


def write(conversation: Conversation, out: pathlib.Path, title: str) -> list[pathlib.Path]:
    """Writes both sides as one stereo file, and the picture."""
    sound, picture = out / "conversation.wav", out / "timeline.png"
    write_audio(sound, np.stack([conversation.user, conversation.model], axis=1))
    timeline.save(conversation, picture, title)
    return [sound, picture]


def run(
    source: str,
    checkpoint: str,
    out: str,
    seed: int,
    events: str | None = None,
    tail_s: float = 1.0,
) -> None:
    """Reads, streams, writes and prints."""
    path = pathlib.Path(source)
    user = read_audio(path)
    annotated = read_events(path, events)
    model = interaction.load(checkpoint)
    silence = np.zeros(round(tail_s * 16_000), np.float32)
    replies = listen(model, np.concatenate([user, silence]), seed)
    user = np.pad(user, (0, len(replies.audio) - len(user)))
    conversation = converse(user, replies, model.decode, annotated)
    print(transcript(conversation.rows))
    milliseconds = 1_000 * conversation.step_s
    print(
        f"step time: median {np.median(milliseconds):.1f} ms, worst {milliseconds.max():.1f} ms, "
        f"deadline 200 ms, {len(milliseconds)} micro-turns"
    )
    title = f"{path.name} and the model {pathlib.Path(checkpoint).name}: one step every 200 ms"
    for written in write(conversation, pathlib.Path(out), title):
        print(f"wrote {written}")


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("input", str(ASSET), "WAV or FLAC of the user, any rate and channels.")
    flags.DEFINE_string("checkpoint", "demo", "Released model: a name or a folder.")
    flags.DEFINE_string("out", "out", "Folder for conversation.wav and timeline.png.")
    flags.DEFINE_integer("seed", 0, "Of the model's sampling.")
    flags.DEFINE_string("events", None, "Annotation; default: the input's name with .json.")
    flags.DEFINE_float("tail", 1.0, "Seconds of silence to go on listening after the end.")


def main(argv: list[str]) -> None:
    """Runs, and turns an error of the user's into one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    use_compilation_cache()
    try:
        run(given.input, given.checkpoint, given.out, given.seed, given.events, given.tail)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
