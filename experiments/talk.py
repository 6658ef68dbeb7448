r"""Talks to a model through the sound card, and shows the words of both sides.

python -m experiments.talk                           # Ctrl-C ends the talk
python -m experiments.talk --list_devices
python -m experiments.talk --input_device=usb --output_device=3 --record=out/talk.session

It needs `pip install -e '.[talk]'`, and on Linux `sudo apt-get install libportaudio2`. Wear
headphones: a model that hears itself answers itself.
"""

import queue
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import app, flags

import interaction
from experiments.agent_factory import agent_maker, find_background
from experiments.converse import make_tools
from experiments.sound_card import SoundCard, load_sounddevice
from interaction.background.agent import BackgroundAgent
from interaction.background.toolbox import Toolbox
from interaction.data.audio_file import SAMPLE_RATE
from interaction.engine import session_events
from interaction.engine.echo_detector import EchoDetector
from interaction.engine.session_events import SessionEvent
from interaction.evaluation.events import TURN_S
from interaction.types import Reply

ECHO = "echo"
HEADPHONES = "the microphone hears the model's own voice: use headphones, or turn it down"
PAUSE_S = 2.0  # s without words, after which a side begins a new line
SIDES = {session_events.USER_TRANSCRIPT: "you", session_events.MODEL_TEXT: "model"}
SHOWN = {
    session_events.ASKED: "asks",
    session_events.TOOL_CALL: "calls",
    session_events.TOOL_RESULT: "gets",
    session_events.DONE: "answered",
    session_events.FAILED: "failed",
    session_events.CANCELLED: "cancelled",
    session_events.MICROPHONE: "microphone",
    ECHO: "note",
}


class Transcript:
    """Events as lines of a terminal: words as they come, and what happens behind."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """Starts on a fresh line.

        Args:
          write: Function that shows text, and does not end the line.
        """
        self._write = write
        self._side, self._turn = "", 0  # of the words at the end of the open line; "" for none

    def show(self, event: SessionEvent) -> None:
        """Shows an event, if it is one that a person wants to see."""
        if event.kind in SIDES:
            goes_on = self._side == event.kind and TURN_S * (event.turn - self._turn) < PAUSE_S
            if not goes_on:
                self._begin(event, SIDES[event.kind])
            self._write(event.text if goes_on else event.text.lstrip())
            self._side, self._turn = event.kind, event.turn
        elif event.kind in SHOWN:
            about = f"{event.delegation}: " if event.delegation else ""
            self._begin(event, SHOWN[event.kind])
            self._write(f"{about}{event.text}\n")
            self._side = ""

    def end(self) -> None:
        """Ends the open line."""
        if self._side:
            self._write("\n")
        self._side = ""

    def _begin(self, event: SessionEvent, who: str) -> None:
        self.end()
        self._write(f"{TURN_S * event.turn:7.1f} s  {who:<10} ")


def talk(
    conversation: interaction.Conversation, card: SoundCard, show: Callable[[SessionEvent], object]
) -> None:
    """Talks until the microphone ends, or until Ctrl-C.

    Args:
      conversation: A fresh conversation.
      card: The sound card, which runs.
      show: Function that takes the events; it may wait.
    """
    events: queue.SimpleQueue[SessionEvent | None] = queue.SimpleQueue()
    conversation.subscribe(events.put)
    detector = EchoDetector(SAMPLE_RATE)

    def hear() -> Iterator[np.ndarray]:
        for pcm in card.recorder:
            if detector.hear(pcm):
                events.put(SessionEvent(conversation.stats.turns, ECHO, HEADPHONES))
            yield pcm

    def say(reply: Reply) -> None:
        pcm = np.asarray(reply.audio)
        detector.play(pcm)
        card.player.put(pcm)

    with ThreadPoolExecutor(1) as pool:
        talking = pool.submit(conversation.run, hear(), say)
        talking.add_done_callback(lambda _: events.put(None))
        while not talking.done():
            try:
                for event in iter(events.get, None):
                    show(event)
            except KeyboardInterrupt:
                card.recorder.stop()
    talking.result()


def summary(conversation: interaction.Conversation, card: SoundCard) -> str:
    """What was late or lost."""
    stats = conversation.stats
    return (
        f"{TURN_S * stats.turns:.0f} s of talk, {stats.missed} late replies, "
        f"slowest step {1_000 * stats.slowest_step_s:.0f} ms\n"
        f"microphone: {card.recorder.overflows} overflows, {stats.lost} chunks lost, "
        f"{stats.dropped_s:.1f} s left out, {stats.inserted_s:.1f} s put in\n"
        f"loudspeaker: {card.player.underflows} underflows, {card.player.gaps} gaps"
    )


def make_agent(model: str, background: str | None) -> BackgroundAgent | None:
    """The background agent with the tools of the demo; None if there is no background model."""
    name = background or find_background(model)
    return None if name is None else agent_maker(name)(Toolbox(make_tools("")))


def run(given: flags.FlagValues) -> None:
    """Runs the command.

    Raises:
      ValueError: The sound card, the model or the record cannot be used.
    """
    if given.list_devices:
        print(load_sounddevice().query_devices() or "no sound card was found")
        return
    card = SoundCard(given.input_device, given.output_device)
    print("loading and compiling", flush=True)
    with ThreadPoolExecutor() as pool:  # both compile for long
        agent = pool.submit(make_agent, given.model, given.background)
        model = interaction.load(given.model)
        conversation = interaction.Conversation(model, agent.result(), record=given.record)
    transcript = Transcript(lambda text: print(text, end="", flush=True))
    with card, conversation:
        print("talk; Ctrl-C ends", flush=True)
        talk(conversation, card, transcript.show)
    transcript.end()
    print(summary(conversation, card))


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", "demo", "Name or folder of a released model.")
    flags.DEFINE_string(
        "background",
        None,
        "Background model; default: the model's name with _background.",
    )
    flags.DEFINE_bool("list_devices", False, "Only list the devices.")
    flags.DEFINE_string("input_device", None, "Microphone: number or part of its name.")
    flags.DEFINE_string("output_device", None, "Loudspeaker: number or part of its name.")
    flags.DEFINE_string("record", None, "File for the session's record.")


def main(argv: list[str]) -> None:
    """Runs the command, and prints a ValueError as one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        run(flags.FLAGS)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
