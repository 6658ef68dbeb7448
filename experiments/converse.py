r"""Streams a recorded user through a model, micro-turn by micro-turn, and shows the conversation.

python -m experiments.converse --input=user.wav --checkpoint=demo --out=out

If there is a background model for the checkpoint, the conversation runs in real time, and the
background model works on delegations with the tools of the demo. Otherwise it runs as fast as
possible.
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
from interaction.background.demo_tools import Row, demo_tools
from interaction.background.tool import Tool
from interaction.background.toolbox import Toolbox
from interaction.data.audio_file import read_audio, write_audio
from interaction.data.bundled_user import ASSET
from interaction.engine import session_record
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.delegation_history import Delegation, read_delegations
from interaction.evaluation.events import TURN_S, Event
from interaction.evaluation.rollout import TURN, Listener, Rollout, rollout
from interaction.evaluation.talk import MakeAgent, session_tools, talk
from interaction.evaluation.transcript import SessionView, converse, transcript

TAIL_S = 1.0  # silence after the user, s
TAIL_WAITING_S = 3.0  # the same with a background model, whose result may come late, s


class Answered(NamedTuple):
    """The model's side of the conversation."""

    replies: Rollout
    delegations: list[Delegation]
    missed: int  # late replies


def annotation(audio: pathlib.Path, given: str | None) -> str:
    """Reads the annotation of a recording.

    Args:
      audio: The recording.
      given: File of the annotation; None takes the recording's name with .json.

    Returns:
      The text; "" if there is no file.

    Raises:
      ValueError: The file was named and is missing.
    """
    path = pathlib.Path(given) if given else audio.with_suffix(".json")
    if not path.is_file():
        if given:
            raise ValueError(f"events {path}: got no such file, wanted a JSON file; check the path")
        return ""
    return path.read_text()


def read_events(audio: pathlib.Path, given: str | None) -> list[Event]:
    """Reads the events of an annotation, see `annotation`; [] if there is none.

    Raises:
      ValueError: The file was named and is missing, or cannot be read.
    """
    text = annotation(audio, given)
    return parse_events(text) if text else []


def make_tools(text: str) -> list[Tool]:
    """Makes the tools of the demo.

    Args:
      text: The annotation. If it has a table, a time and the delays of calls, the tools use them.
        Otherwise they answer at once, with the real time and the table of the demo.
    """
    meta = json.loads(text) if text else {}
    if "prices" in meta and "delegations" in meta:
        slow = {note["call"]["tool"]: note["tool_s"] for note in meta["delegations"]}
        delays = ", ".join(f"{name} {seconds:g} s" for name, seconds in slow.items())
        print(f"delays of the tools, from the annotation: {delays}")
        return session_tools(meta)
    prices = json.loads(ASSET.with_suffix(".json").read_text())["prices"]
    return demo_tools([Row(item, price, place) for item, (price, place) in prices.items()])


def listen(model: Listener, user: np.ndarray, seed: int) -> Rollout:
    """Streams a user through a model without a background model, as fast as possible.

    Args:
      model: The live model.
      user: float32[samples], the user's PCM.
      seed: Seed of the model's sampling.
    """
    warm = np.zeros(2 * TURN, np.float32)
    rollout(model, [warm], [seed])  # compiles, so that the step times exclude compilation
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
    """Streams a user through a model in real time, with a background agent and its tools.

    Args:
      model: The live model.
      make_agent: Makes the background agent.
      tools: Tools of the agent.
      user: float32[samples], the user's PCM.
      seed: Seed of the model's sampling.
      record: File for the record of the session.
    """
    turns = -(-len(user) // TURN)
    print(f"talking in real time: {TURN_S * turns:.0f} s")
    record.unlink(missing_ok=True)
    agent = make_agent(Toolbox(tools))
    with tqdm(total=turns, desc="talking", unit="turn") as progress:
        done = talk(model, agent, user, seed, record, 0.0, progress.update)
    replies = Rollout(done.audio, done.text, done.user_transcript, done.step_s + done.driver_s)
    return Answered(replies, read_delegations(session_record.read(record).entries), done.missed)


def write(conversation: SessionView, out: pathlib.Path, title: str) -> list[pathlib.Path]:
    """Writes both sides as a stereo file, and the timeline; returns their paths."""
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
    """Runs the command; the arguments are its flags."""
    path, folder = pathlib.Path(source), pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out: got {out!r} ({error}), wanted a folder; choose another path"
        ) from error
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
    flags.DEFINE_string("checkpoint", "demo", "Name or folder of a released model.")
    flags.DEFINE_string("out", "out", "Folder for the results.")
    flags.DEFINE_integer("seed", 0, "Seed of the model's sampling.")
    flags.DEFINE_string("events", None, "Annotation; default: the input's name with .json.")
    flags.DEFINE_float("tail", None, "Seconds of silence after the input.")
    flags.DEFINE_string(
        "background", None, "Background model; default: the checkpoint's name with _background."
    )


def main(argv: list[str]) -> None:
    """Runs the command, and prints a ValueError as one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = flags.FLAGS
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
