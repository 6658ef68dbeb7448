"""The interface between a conversation and its background agent.

A `BackgroundAgent` observes the session micro-turn by micro-turn. Delegations are started, updated
and cancelled while the conversation continues. No call waits: the agent works elsewhere, and
`events` returns what has happened so far.
"""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Kinds of events of a delegation, in their order; all but the last two may occur several times.
THINKING = "thinking"  # text: the agent's reasoning, for the record
CALL = "call"  # text: JSON of a tool's name and arguments, before the tool is started
RESULT = "result"  # text: JSON of the tool's result or error
TEXT = "text"  # text: words for the user, which stream in order
DONE = "done"  # the last event
FAILED = "failed"  # text: the reason; the last event
KINDS = (THINKING, CALL, RESULT, TEXT, DONE, FAILED)


class MicroTurn(NamedTuple):
    """One micro-turn of the record: the inputs and outputs of the live model."""

    audio: np.ndarray  # float32[turn_samples], the user's PCM in [-1, 1]
    speech: np.ndarray  # float32[turn_samples], the model's PCM in [-1, 1]
    user_transcript: np.ndarray  # int32[audio_positions], the model's transcription of the user
    text: int  # the text-out token
    arrived: np.ndarray | None = None  # int32[text_slots], PAD where empty
    frame: np.ndarray | None = None  # float32[size, size, 3] in [0, 1]


class Event(NamedTuple):
    """An event of a delegation."""

    delegation: int  # number of the delegation
    kind: str  # one of KINDS
    text: str = ""


class BackgroundAgent(abc.ABC):
    """The reasoner of one conversation; no method blocks, and all are called from one thread."""

    __taken = ""  # why no further conversation can have it

    def attach(self) -> None:
        """Binds the agent to a conversation, for good.

        Raises:
          ValueError: It belongs to a conversation already, or was closed.
        """
        if self.__taken:
            raise ValueError(
                f"agent: got one that {self.__taken}, wanted a new one; make an agent for each "
                "conversation"
            )
        self.__taken = "belongs to a conversation"

    def detach(self) -> None:
        """Takes `attach` back, for a conversation that could not begin."""
        self.__taken = ""

    @abc.abstractmethod
    def observe(self, turn: MicroTurn) -> None:
        """Takes the next micro-turn; called once for each micro-turn, in order."""

    @abc.abstractmethod
    def ask(self, delegation: int, request: str) -> None:
        """Starts a delegation.

        Args:
          delegation: A new number.
          request: The request, in words.
        """

    def fits(self, request: str, correction: str) -> bool:
        """Whether a correction can be one of this request.

        A correction goes to the newest delegation that it fits. An agent that cannot tell answers
        True.

        Args:
          request: The request of a delegation, in words.
          correction: Such as "nine", or "in the kitchen" instead.
        """
        return True

    @abc.abstractmethod
    def update(self, delegation: int, request: str, updates: Sequence[str]) -> None:
        """Corrects a delegation.

        The call repeats the whole request, so that an agent that was restarted needs nothing else.
        A delegation that is DONE or FAILED runs again, also if its words were given a moment ago. A
        CALL that it made before still gets its RESULT, for example that the call was cancelled.

        Args:
          delegation: The number of the delegation.
          request: The original request.
          updates: All corrections, the newest last.
        """

    @abc.abstractmethod
    def cancel(self, delegation: int) -> None:
        """Drops a running delegation; its later events are ignored."""

    @abc.abstractmethod
    def events(self) -> list[Event]:
        """The events since the last call."""

    def close(self) -> None:
        """Releases threads and connections; a method that replaces it calls it."""
        self.__taken = "was closed"


def check_agent(agent: object) -> None:
    """Checks that a conversation can have this agent.

    Args:
      agent: A background agent, or None for none.

    Raises:
      ValueError: It is something else, such as a toolbox or a list of tools.
    """
    if agent is not None and not isinstance(agent, BackgroundAgent):
        raise ValueError(
            f"agent: got a {type(agent).__name__}, wanted a BackgroundAgent or None; make one, for "
            "example ReasonerAgent(load_reasoner(), Toolbox(tools))"
        )
