"""Finds the spans of control tokens in a text stream, and what of the stream is said aloud.

It does in NumPy what `interaction.model.control_tokens` does in JAX.
"""

from typing import NamedTuple

import numpy as np

from interaction.types import Special

OPENING = (Special.DELEGATE, Special.UPDATE)


class Span(NamedTuple):
    """Words after `<delegate>` or `<update>` in a text stream."""

    opening: int  # DELEGATE or UPDATE
    first: int  # micro-turn of the opening token
    last: int  # micro-turn of the last token
    words: tuple[int, ...]  # token ids
    complete: bool  # whether `</delegate>` followed


def read_spans(text: np.ndarray) -> list[Span]:
    """Finds the spans, also those that another token than `</delegate>` ends.

    Args:
      text: int32[turns], text-out tokens.

    Returns:
      The spans in order of time.
    """
    found: list[Span] = []
    tokens, turn = np.asarray(text).tolist(), 0
    while turn < len(tokens):
        first, opening = turn, tokens[turn]
        turn += 1
        if opening not in OPENING:
            continue
        while turn < len(tokens) and tokens[turn] >= Special.COUNT:
            turn += 1
        words = tuple(tokens[first + 1 : turn])
        complete = turn < len(tokens) and tokens[turn] == Special.END_DELEGATE
        turn += complete
        found.append(Span(opening, first, turn - 1, words, complete))
    return found


def aloud(text: np.ndarray) -> np.ndarray:
    """Replaces the tokens that are not said aloud.

    Args:
      text: int32[turns], text-out tokens.

    Returns:
      int32[turns], SILENT in place of spans and other control tokens.
    """
    text = np.array(text, np.int32)
    for span in read_spans(text):
        text[span.first : span.last + 1] = Special.SILENT
    text[np.isin(text, (Special.END_DELEGATE, Special.CANCEL))] = Special.SILENT
    return text
