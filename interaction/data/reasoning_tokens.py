"""What a stored session says about the background model: arrivals, and one branch to learn from.

A branch is what the reasoner reads and writes of one delegation, see `reasoning_tokens`.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from interaction.data.tokenizer import Tokenizer
from interaction.types import Special

ARRIVALS = 32  # tokens that may arrive in a session
REASONING_TOKENS = 80  # tokens of a branch

Reasoning = list[tuple[int, bool]]  # (token, whether the reasoner is to write it)


def reasoning_tokens(
    tokenizer: Tokenizer,
    spans: Sequence[tuple[int, str]],
    reasoning: str,
    call: dict[str, Any],
    result: dict[str, Any],
    answer: str,
) -> Reasoning:
    """A branch, token by token.

    Args:
      tokenizer: The models'.
      spans: (opening token, words) of the request, then of what corrects it.
      reasoning: The whole request, as corrected.
      call: "tool" and its arguments.
      result: {"result": value} or {"error": text}.
      answer: What the user is told.

    Returns:
      The spans and the result, which are read; thought, call and answer, which are written.
    """
    read = [
        token
        for opening, words in spans
        for token in (opening, *tokenizer.encode(words), Special.END_DELEGATE)
    ]
    write = tokenizer.encode(reasoning)
    write += [Special.DELEGATE, *tokenizer.encode(json.dumps(call)), Special.END_DELEGATE]
    back = [Special.UPDATE, *tokenizer.encode(json.dumps(result)), Special.END_DELEGATE]
    told = [Special.HOLD, *tokenizer.encode(answer), Special.SILENT]
    parts = ((read, False), (write, True), (back, False), (told, True))
    return [(token, wanted) for tokens, wanted in parts for token in tokens]


def reasoning_arrays(prefilled: int, reasoning: Reasoning) -> dict[str, np.ndarray]:
    """A branch as a record has it.

    Args:
      prefilled: Micro-turns of the session before it.
      branch: From `reasoning_tokens`, [] where the session has none.

    Returns:
      followed int32[], thought int32[THOUGHTS] with PAD at the end, thought_wanted
      int32[THOUGHTS].

    Raises:
      ValueError: the branch is too long.
    """
    if len(reasoning) > REASONING_TOKENS:
        raise ValueError(
            f"branch: got {len(reasoning)} tokens, wanted at most {REASONING_TOKENS}; shorten its call"
        )
    tokens = np.full(REASONING_TOKENS, Special.PAD, np.int32)
    wanted = np.zeros(REASONING_TOKENS, np.int32)
    for place, (token, write) in enumerate(reasoning):
        tokens[place], wanted[place] = token, write
    return {
        "prefilled": np.asarray(prefilled, np.int32),
        "reasoning": tokens,
        "reasoning_wanted": wanted,
    }


def arrival_arrays(arrivals: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Arrivals as a record has them.

    Args:
      arrivals: (micro-turn * text_slots + slot, token) in order of time.

    Returns:
      arrived int32[ARRIVALS] with PAD at the end, arrived_slot int32[ARRIVALS].

    Raises:
      ValueError: there are too many.
    """
    if len(arrivals) > ARRIVALS:
        raise ValueError(
            f"arrivals: got {len(arrivals)} tokens, wanted at most {ARRIVALS}; shorten the session"
        )
    slots = np.zeros(ARRIVALS, np.int32)
    tokens = np.full(ARRIVALS, Special.PAD, np.int32)
    for place, (slot, token) in enumerate(arrivals):
        slots[place], tokens[place] = slot, token
    return {"arrived": tokens, "arrived_slot": slots}
