r"""Streams a recorded user through a model, as live, and shows what happened.

With a background model beside the checkpoint the talk goes in real time, and what it hands over is
reasoned about with the demo's tools meanwhile. Without one it goes as fast as it can.

python -m experiments.converse --input=user.wav --checkpoint=demo --out=out
"""

import json
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from absl import app, flags
from tqdm import tqdm

import interaction
from experiments.agent_factory import agent_maker, find_background
from experiments.compilation_cache import use_compilation_cache
from interaction.background.demo_tools import Row, demo_tools
from interaction.background.tool import Tool
from interaction.background.toolbox import Toolbox
from interaction.data.audio_file import read_audio, write_audio
from interaction.engine import session_record
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.delegation_history import Delegation, read_delegations
from interaction.evaluation.events import TURN_S, Event
from interaction.evaluation.rollout import TURN, Listener, Rollout, rollout
from interaction.evaluation.talk import MakeAgent, session_tools, talk
from interaction.evaluation.transcript import SessionView, converse, transcript

ASSET = pathlib.Path(__file__).parent / "assets" / "user.flac"
TAIL_S = 1.0  # of silence after the user
TAIL_WAITING_S = 3.0  # the same where a result may still come


class Answered(NamedTuple):
    """What came of the user's recording."""

    replies: Rollout
    delegations: list[Delegation]
    missed: int  # replies that were late


def annotation(audio: pathlib.Path, given: str | None) -> str:
    """Reads the annotation beside a recording; "" if there is none.

    Raises:
      ValueError: if the file was named and is missing.
    """
    path = pathlib.Path(given) if given else audio.with_suffix(".json")
    if not path.is_file():
        if given:
            raise ValueError(f"events {path}: got no such file, wanted a JSON file; check the path")
        return ""
    return path.read_text()


def read_events(audio: pathlib.Path, given: str | None) -> list[Event]:
    """Reads the events of an annotation; [] if there is none.

    Raises:
      ValueError: if the file was named and is missing, or cannot be read.
    """
    text = annotation(audio, given)
    return parse_events(text) if text else []


def make_tools(text: str) -> list[Tool]:
    """The demo's tools.

    Args:
      text: An annotation. One that has a table, a time and the delays of calls is obeyed;
        otherwise the tools answer at once, by the real clock and the table of the demo's own.
    """
    meta = json.loads(text) if text else {}
    if "prices" in meta and "delegations" in meta:
        slow = {note["call"]["tool"]: note["tool_s"] for note in meta["delegations"]}
        delays = ", ".join(f"{name} {seconds:g} s" for name, seconds in slow.items())
        print(f"as the recording asks, the tools take their time: {delays}")
        return session_tools(meta)
    prices = json.loads(ASSET.with_suffix(".json").read_text())["prices"]
    return demo_tools([Row(item, price, place) for item, (price, place) in prices.items()])


def listen(model: Listener, user: np.ndarray, seed: int) -> Rollout:
    """Streams float32[n] through a model, micro-turn by micro-turn, with a progress bar."""
    warm = np.zeros(2 * TURN, np.float32)
    rollout(model, [warm], [seed])  # compiles, so that step times are those of a running model
    with tqdm(total=-(-len(user) // TURN), desc="listening", unit="turn") as progress:
        return rollout(model, [user], [seed], lambda _: progress.update())[0]


def listen_live(
    model: interaction.InteractionModel,
    make_agent: MakeAgent,
    tools: list[Tool],
    user: np.ndarray,
    seed: int,
    record: pathlib.Path,
) -> Answered:
    """Streams float32[n] through a model in real time, with a background agent and its tools."""
    turns = -(-len(user) // TURN)
    print(f"talking in real time: {TURN_S * turns:.0f} s")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    agent = make_agent(Toolbox(tools))
    with tqdm(total=turns, desc="talking", unit="turn") as progress:
        done = talk(model, agent, user, seed, record, 0.0, progress.update)
    replies = Rollout(done.audio, done.text, done.user_transcript, done.step_s + done.driver_s)
    return Answered(replies, read_delegations(session_record.read(record).entries), done.missed)


def write(conversation: SessionView, out: pathlib.Path, title: str) -> list[pathlib.Path]:
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
    tail_s: float | None = None,
    background: str | None = None,
) -> None:
    """Reads, streams, writes and prints."""
    path, folder = pathlib.Path(source), pathlib.Path(out)
    user = read_audio(path)
    annotated = read_events(path, events)
    model = interaction.load(checkpoint)
    background = background or find_background(checkpoint)
    if tail_s is None:
        tail_s = TAIL_WAITING_S if background else TAIL_S
    user = np.concatenate([user, np.zeros(round(tail_s * 16_000), np.float32)])
    record = folder / "conversation.session"
    if background is None:
        answered = Answered(listen(model, user, seed), [], 0)
    else:
        tools = make_tools(annotation(path, events))
        answered = listen_live(model, agent_maker(background), tools, user, seed, record)
    user = np.pad(user, (0, len(answered.replies.audio) - len(user)))
    conversation = converse(user, answered.replies, model.decode, annotated, answered.delegations)
    print(transcript(conversation.rows))
    milliseconds = 1_000 * conversation.step_s
    print(
        f"step time: median {np.median(milliseconds):.1f} ms, worst {milliseconds.max():.1f} ms, "
        f"deadline 200 ms, {len(milliseconds)} micro-turns, {answered.missed} late"
    )
    title = f"{path.name} and the model {pathlib.Path(checkpoint).name}: one step every 200 ms"
    written = write(conversation, folder, title)
    for place in [*written, *([] if background is None else [record])]:
        print(f"wrote {place}")


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("input", str(ASSET), "WAV or FLAC of the user, any rate and channels.")
    flags.DEFINE_string("checkpoint", "demo", "Released model: a name or a folder.")
    flags.DEFINE_string("out", "out", "Folder for what is written.")
    flags.DEFINE_integer("seed", 0, "Of the model's sampling.")
    flags.DEFINE_string("events", None, "Annotation; default: the input's name with .json.")
    flags.DEFINE_float("tail", None, "Seconds of silence to go on listening after the end.")
    flags.DEFINE_string("background", None, "Background model; default: beside the checkpoint.")


def main(argv: list[str]) -> None:
    """Runs, and turns an error of the user's into one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
    use_compilation_cache()
    try:
        run(
            given.input,
            given.checkpoint,
            given.out,
            given.seed,
            given.events,
            given.tail,
            given.background,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
