"""What a conversation asks of whoever reasons behind it, and what it hears back.

A `BackgroundAgent` follows the session, micro-turn by micro-turn, and is asked, updated and
cancelled while the talk goes on. No call waits: work is done elsewhere, and `events` hands over
what has come of it so far.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

# Kinds of events of a delegation, in the order in which they come; TEXT may come several times.
THINKING = "thinking"  # text: what the agent thinks, for the record
CALL = "call"  # text: JSON of a tool's name and arguments; comes before the tool is started
RESULT = "result"  # text: JSON of what the tool returned, or of its error
TEXT = "text"  # text: words for the user, in order; they stream
DONE = "done"  # nothing follows
FAILED = "failed"  # text: why; nothing follows
KINDS = (THINKING, CALL, RESULT, TEXT, DONE, FAILED)


class MicroTurn(NamedTuple):
    """One micro-turn of the record: what came in and what went out."""

    audio: np.ndarray  # float32[turn_samples], the user's PCM
    speech: np.ndarray  # float32[turn_samples], the model's PCM
    user_transcript: np.ndarray  # int32[audio_positions], the user's words as the model heard them
    text: int  # the text-out token
    arrived: np.ndarray | None = None  # int32[text_slots], PAD where empty
    frame: np.ndarray | None = None  # float32[size, size, 3]


class Event(NamedTuple):
    """Something that happened to a delegation."""

    delegation: int
    kind: str  # one of KINDS
    text: str = ""


class BackgroundAgent(Protocol):
    """A reasoner of one conversation; no method blocks, and all are called from one thread."""

    def observe(self, turn: MicroTurn) -> None:
        """The next micro-turn of the conversation; called once for each, in order."""

    def ask(self, delegation: int, request: str) -> None:
        """Hands over a request, in words; `delegation` is a new number."""

    def update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """Corrects a request.

        All of it is told again: an agent that came later, or that has forgotten, needs no more.

        Args:
          delegation: The number under which it was asked.
          request: As it was asked.
          updates: What corrects it, such as "nine" or "in the kitchen" instead, the newest last.

        It may be DONE already, as long as not all of its words were given; then it runs again. A
        CALL that it had made has its RESULT all the same, such as that it was cancelled.
        """

    def cancel(self, delegation: int) -> None:
        """Drops a running request; events of it that are still to come are ignored."""

    def events(self) -> list[Event]:
        """What has happened since the last call."""

    def close(self) -> None:
        """Lets go of threads and connections."""
