"""Fields of a stored session for the background model: text that arrives, and reasoning tokens.

The background model reads the record of a session. For each delegation it works in a fork of that
record, in which it reads and writes the reasoning tokens, see `reasoning_tokens`. A stored session
has the reasoning tokens of one delegation at most.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from interaction.data.tokenizer import Tokenizer
from interaction.types import Special

ARRIVALS = 32  # most tokens that arrive in a session
REASONING_TOKENS = 80  # most reasoning tokens of a fork

Reasoning = list[tuple[int, bool]]  # (token, whether the background model has to write it)


def reasoning_tokens(
    tokenizer: Tokenizer,
    spans: Sequence[tuple[int, str]],
    request: str,
    call: dict[str, Any],
    result: dict[str, Any],
    answer: str,
) -> Reasoning:
    """The reasoning tokens of one delegation.

    Args:
      tokenizer: The tokenizer of the models.
      spans: (opening token, words) of the request, and then of each correction.
      request: The whole request, with the corrections applied.
      call: "tool" and its arguments.
      result: {"result": value} or {"error": text}.
      answer: The words for the user.

    Returns:
      In this order: the spans, which are read; the request and the call, which are written; the
      result, which is read; and the answer, which is written.
    """
    read = [
        token
        for opening, words in spans
        for token in (opening, *tokenizer.encode(words), Special.END_DELEGATE)
    ]
    write = tokenizer.encode(request)
    write += [Special.DELEGATE, *tokenizer.encode(json.dumps(call)), Special.END_DELEGATE]
    back = [Special.UPDATE, *tokenizer.encode(json.dumps(result)), Special.END_DELEGATE]
    said = [Special.HOLD, *tokenizer.encode(answer), Special.SILENT]
    parts = ((read, False), (write, True), (back, False), (said, True))
    return [(token, wanted) for tokens, wanted in parts for token in tokens]


def reasoning_arrays(prefilled: int, reasoning: Reasoning) -> dict[str, np.ndarray]:
    """Reasoning tokens as fields of a stored session.

    Args:
      prefilled: Micro-turns of the session before the fork.
      reasoning: From `reasoning_tokens`; [] for a session without a fork.

    Returns:
      `prefilled` int32[]; `reasoning` int32[REASONING_TOKENS], with PAD at the end; and
      `reasoning_wanted` int32[REASONING_TOKENS], 1 where the background model writes the token.

    Raises:
      ValueError: There are too many reasoning tokens.
    """
    if len(reasoning) > REASONING_TOKENS:
        raise ValueError(
            f"reasoning: got {len(reasoning)} tokens, wanted at most {REASONING_TOKENS}; "
            "shorten the call"
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
    """Text that arrives, as fields of a stored session.

    Args:
      arrivals: (micro-turn * text_slots + slot, token), in order of time.

    Returns:
      `arrived` int32[ARRIVALS], tokens with PAD at the end; and `arrived_slot` int32[ARRIVALS], the
      micro-turn and slot of each token as above.

    Raises:
      ValueError: There are too many tokens.
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
