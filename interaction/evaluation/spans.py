"""What a text stream hands over, and what of it is said aloud: `interaction.model.control_tokens`, in numpy."""

from typing import NamedTuple

import numpy as np

from interaction.types import Special

OPENING = (Special.DELEGATE, Special.UPDATE)


class Span(NamedTuple):
    """Words that a text stream opened with `<delegate>` or `<update>`."""

    opening: int  # DELEGATE or UPDATE
    first: int  # micro-turn of the opening token
    last: int  # micro-turn of the last token that belongs to it
    words: tuple[int, ...]  # ids
    complete: bool  # whether `</delegate>` followed


def read_spans(text: np.ndarray) -> list[Span]:
    """The spans of int32[turns] in order, those that another token ended unfinished as well."""
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
    """int32[turns] -> int32[turns], SILENT in place of what is not said aloud."""
    text = np.array(text, np.int32)
    for span in read_spans(text):
        text[span.first : span.last + 1] = Special.SILENT
    text[np.isin(text, (Special.END_DELEGATE, Special.CANCEL))] = Special.SILENT
    return text
