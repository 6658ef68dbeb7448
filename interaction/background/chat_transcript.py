"""`Transcript`: the words of a conversation, as a chat endpoint reads them."""

from collections.abc import Callable, Sequence

from interaction.background.agent import MicroTurn
from interaction.types import Special

_LONGEST = 4_000  # most characters


class Transcript:
    """The words of both sides: the user transcript, and what the model said aloud."""

    def __init__(self, decode: Callable[[Sequence[int]], str], keep: int) -> None:
        """Makes an empty transcript.

        Args:
          decode: Decodes token ids.
          keep: Micro-turns that it covers.
        """
        self._decode = decode
        self._keep = keep
        self._turn = 0
        self._words: list[tuple[int, str, int]] = []  # micro-turn, speaker, id
        self._inside = False

    def clear(self) -> None:
        """Forgets everything."""
        self._words, self._inside = [], False

    def add(self, turn: MicroTurn) -> None:
        """Adds one micro-turn; words between control tokens are not said aloud and left out."""
        self._turn += 1
        for token in turn.user_transcript:
            if token >= Special.COUNT:
                self._words.append((self._turn, "user", int(token)))
        word = turn.text >= Special.COUNT
        if word and not self._inside:
            self._words.append((self._turn, "assistant", int(turn.text)))
        opens = turn.text in (Special.DELEGATE, Special.UPDATE)
        self._inside = opens or (self._inside and word)
        while self._words and self._words[0][0] <= self._turn - self._keep:
            self._words.pop(0)

    def text(self) -> str:
        """A line for each change of the speaker, cut to the last `_LONGEST` characters."""
        lines: list[tuple[str, list[int]]] = []
        for _, speaker, token in self._words:
            if not lines or lines[-1][0] != speaker:
                lines.append((speaker, []))
            lines[-1][1].append(token)
        text = "\n".join(f"{speaker}: {self._decode(ids)}" for speaker, ids in lines)
        return text[-_LONGEST:]
