"""The clock rules: when an answer starts and ends, and where its tokens and the user's go.

Times of the user are samples from the session's start. Reply n of the model is heard from
sample 3200 (n + 1) on, one micro-turn after its step began.
"""

import numpy as np

from interaction.data.clips import RATE, Clip
from interaction.data.tokenizer import Tokenizer
from interaction.types import Special

TURN = 3_200  # samples
SLOT = 1_600  # samples of one slot of the user's transcription
ANSWER_WAIT = 3_520  # samples (0.22 s) from the end of a request to the earliest answer
STOP_WAIT = 3_840  # samples (0.24 s) from the onset of an interruption to silence
END_MARGIN = 640  # samples (0.04 s) after the last audible one
TRANSCRIPT_DELAY = 640  # samples (0.04 s) from the end of a word to its transcription
LEAD = 2  # micro-turns that text runs ahead of its audio at most


def first_turn_after(sample: int) -> int:
    """First step whose reply is heard at or after a sample of the user's clock."""
    return max(-(-sample // TURN) - 1, 0)


def answer_turn(request_end: int) -> int:
    """Step of the first speech for a request that ends at this sample."""
    return first_turn_after(request_end + ANSWER_WAIT)


def stop_turn(interruption_onset: int) -> int:
    """First silent step for an interruption that starts at this sample."""
    return first_turn_after(interruption_onset + STOP_WAIT)


def answer_end_turn(first: int, samples: int) -> int:
    """First step after an answer of this length that starts with step `first`."""
    return first + -(-(samples + END_MARGIN) // TURN)


def _spread(tokenizer: Tokenizer, clip: Clip) -> tuple[list[int], list[float]]:
    """Tokens of a clip and their onsets in seconds; a word's tokens share its time evenly."""
    tokens: list[int] = []
    onsets: list[float] = []
    for word, start, end in zip(clip.text.split(), clip.onsets, clip.ends, strict=True):
        ids = tokenizer.encode(word)
        tokens += ids
        onsets += [float(start + (end - start) * i / len(ids)) for i in range(len(ids))]
    return tokens, onsets


def answer_tokens(tokenizer: Tokenizer, clip: Clip, first: int, end: int) -> dict[int, int]:
    """Text-out tokens of an answer by step: words from `first` on, `hold` elsewhere to `end`."""
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
    """Transcription targets, int32[turns, 2], of clips (start sample, clip) in order of time."""
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
