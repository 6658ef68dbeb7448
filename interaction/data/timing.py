"""Rules of time: when an answer starts and ends, and in which micro-turns tokens stand.

Times are samples of the user's clock, which starts with the session. Reply n of the model, the
output of micro-turn n, plays from sample 3200 (n + 1) on: the model needs the whole micro-turn of
the user's audio first.
"""

import numpy as np

from interaction.data.clips import RATE, Clip
from interaction.data.tokenizer import Tokenizer
from interaction.types import Special

TURN = 3_200  # samples
SLOT = 1_600  # samples of one slot of the user transcript
ANSWER_WAIT = 3_520  # samples (0.22 s), least time from the end of a request to its answer
STOP_WAIT = 3_840  # samples (0.24 s), least time from the onset of an interruption to silence
END_MARGIN = 640  # samples (0.04 s) of an answer after its last sound
TRANSCRIPT_DELAY = 640  # samples (0.04 s) from the end of a word to its token
LEAD = 2  # most micro-turns by which a token precedes its sound


def first_turn_after(sample: int) -> int:
    """The first micro-turn whose reply plays at or after a sample of the user's clock."""
    return max(-(-sample // TURN) - 1, 0)


def answer_turn(request_end: int) -> int:
    """The micro-turn in which the answer starts, for a request that ends at this sample."""
    return first_turn_after(request_end + ANSWER_WAIT)


def stop_turn(interruption_onset: int) -> int:
    """The first silent micro-turn, for an interruption that starts at this sample."""
    return first_turn_after(interruption_onset + STOP_WAIT)


def answer_end_turn(first: int, samples: int) -> int:
    """The first micro-turn after an answer of so many samples that starts in `first`."""
    return first + -(-(samples + END_MARGIN) // TURN)


def _spread(tokenizer: Tokenizer, clip: Clip) -> tuple[list[int], list[float]]:
    """Tokens of a clip and their onsets in s; tokens of one word are spaced evenly over it."""
    tokens: list[int] = []
    onsets: list[float] = []
    for word, start, end in zip(clip.text.split(), clip.onsets, clip.ends, strict=True):
        ids = tokenizer.encode(word)
        tokens += ids
        onsets += [float(start + (end - start) * i / len(ids)) for i in range(len(ids))]
    return tokens, onsets


def answer_tokens(tokenizer: Tokenizer, clip: Clip, first: int, end: int) -> dict[int, int]:
    """The text-out tokens of an answer.

    Args:
      tokenizer: Encodes the words.
      clip: The answer as it is spoken.
      first: Micro-turn in which it starts.
      end: The first micro-turn after it.

    Returns:
      The token of each micro-turn from `first` to `end`: one of a word, at most LEAD micro-turns
      before its sound, or HOLD.
    """
    tokens, onsets = _spread(tokenizer, clip)
    targets = dict.fromkeys(range(first, end), Special.HOLD)
    turn = first - 1
    for token, onset in zip(tokens, onsets, strict=True):
        turn = max(turn + 1, first + int(onset * RATE) // TURN - LEAD)
        if turn < end:
            targets[turn] = token
    return targets


def transcript_tokens(
    tokenizer: Tokenizer, spoken: list[tuple[int, Clip]], turns: int
) -> np.ndarray:
    """The user transcript, with the tokens of each word shortly after its end.

    Args:
      tokenizer: Encodes the words.
      spoken: (start in samples, clip) of all that the user says, in order of time.
      turns: Length of the session in micro-turns.

    Returns:
      int32[turns, 2], one token for each slot of 100 ms, NONE where there is none.
    """
    slots = np.full(turns * 2, Special.NONE, np.int32)
    free = 0
    for start, clip in spoken:
        for word, end in zip(clip.text.split(), clip.ends, strict=True):
            slot = (start + int(end * RATE) + TRANSCRIPT_DELAY) // SLOT
            for token in tokenizer.encode(word):
                slot = max(slot, free)
                if slot < len(slots):
                    slots[slot] = token
                free = slot + 1
    return slots.reshape(turns, 2)
