"""What happens in a session, for apps: words of both sides, speech, delegations, lost audio."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from interaction.background import agent, delegations
from interaction.types import Note, Reply, Special

USER_TRANSCRIPT = "user transcript"  # text: words that the user said
MODEL_TEXT = "model text"  # text: words that the model says
SPEECH_STARTED, SPEECH_STOPPED = "speech started", "speech stopped"  # of the model
ASKED = "delegation asked"  # text: the request
PROGRESS = "delegation progress"  # text: reasoning, a correction, or words of the answer
TOOL_CALL, TOOL_RESULT = "tool call", "tool result"  # text: JSON
DONE = "delegation done"  # the model has read the whole answer, or that it failed
FAILED = "delegation failed"  # text: the reason
CANCELLED = "delegation cancelled"
DEADLINE_MISSED = "deadline missed"  # the reply was not ready when the next micro-turn began
MICROPHONE = "microphone"  # text: what is wrong with its level, or "good"
AUDIO_LOST = "audio lost"  # text: what the network or the microphone did
CLOSED = "closed"  # text: the reason; the last event

_OF_NOTES = {
    delegations.ASKED: ASKED,
    delegations.UPDATED: PROGRESS,
    agent.THINKING: PROGRESS,
    agent.TEXT: PROGRESS,
    agent.CALL: TOOL_CALL,
    agent.RESULT: TOOL_RESULT,
    agent.FAILED: FAILED,
    delegations.CANCELLED: CANCELLED,
    delegations.GIVEN: DONE,
}


_CONTEXT = 32  # last tokens that are decoded together, for the spaces between them


class SessionEvent(NamedTuple):
    """Something that happened in a session."""

    turn: int  # number of the micro-turn, counted from 0
    kind: str  # one of the constants of this module
    text: str = ""
    delegation: int = 0  # number of the delegation; 0 for other events


class EventReader:
    """Derives the events of each micro-turn from its reply and its notes."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Starts in silence.

        Args:
          decode: Decodes token ids, for example a tokenizer's `decode`.
        """
        self._words = {kind: _Words(decode) for kind in (USER_TRANSCRIPT, MODEL_TEXT)}
        self._speaks = False
        self._inside = False  # between control tokens, which are not said

    def saved(self) -> dict[str, Any]:
        """All that the next events depend on: what `resume` takes."""
        return {
            "speaks": self._speaks,
            "inside": self._inside,
            "heard": list(self._words[USER_TRANSCRIPT].ids),
            "said": list(self._words[MODEL_TEXT].ids),
        }

    def resume(self, fields: dict[str, Any]) -> None:
        """Goes on from what `saved` returned."""
        self._speaks, self._inside = fields["speaks"], fields["inside"]
        self._words[USER_TRANSCRIPT].ids = list(fields["heard"])
        self._words[MODEL_TEXT].ids = list(fields["said"])

    def read(self, turn: int, reply: Reply, notes: Sequence[Note]) -> list[SessionEvent]:
        """The events of the next micro-turn.

        Args:
          turn: Number of the micro-turn.
          reply: The reply of one session: audio float32[turn_samples] in [-1, 1], text int32[],
            user_transcript int32[audio_positions].
          notes: Notes about delegations since the last micro-turn.
        """
        found = []
        heard = [int(one) for one in np.ravel(reply.user_transcript)]
        token = int(reply.text)
        word = token >= Special.COUNT
        said = [token] if word and not self._inside else []
        if not word:
            self._inside = token in (Special.DELEGATE, Special.UPDATE)
        for kind, ids in ((USER_TRANSCRIPT, heard), (MODEL_TEXT, said)):
            text = self._words[kind].add([one for one in ids if one >= Special.COUNT])
            found += [SessionEvent(turn, kind, text)] if text else []
        speaks = bool(np.any(reply.audio))
        if speaks != self._speaks:
            found.append(SessionEvent(turn, SPEECH_STARTED if speaks else SPEECH_STOPPED))
        self._speaks = speaks
        for note in notes:
            if note.kind in _OF_NOTES:
                kind = _OF_NOTES[note.kind]
                found.append(SessionEvent(turn, kind, note.text, note.delegation))
        return found


class _Words:
    """Text of token ids that come a few at a time, with the spaces between words."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self.ids: list[int] = []

    def add(self, ids: list[int]) -> str:
        """The text that the new ids add to the old ones."""
        before = self._decode(self.ids)
        text = self._decode(self.ids + ids)[len(before) :]
        self.ids = (self.ids + ids)[-_CONTEXT:]
        return text
