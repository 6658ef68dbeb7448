"""Inputs and outputs of a step, special tokens, and the letters that name axes.

Axis letters, in docstrings and einsums alike: b session, n micro-turn, t position, d model,
h query head, g key-value head, k head dimension, e expert, f ffn, l layer, s cache slot, m mel
channel, v vocabulary. In a docstring `float[b, t]` is float32 or bfloat16: the model's computing
dtype.
"""

from typing import NamedTuple

import jax

Array = jax.Array
Params = dict  # nested dict of arrays


class Special:
    """Ids of the special tokens; every tokenizer of this project starts with them."""

    PAD, SILENT, HOLD, NONE, DELEGATE, END_DELEGATE, CANCEL, UPDATE = range(8)
    COUNT = 8
    NAMES = (
        "<pad>",
        "<silent>",
        "<hold>",
        "<none>",
        "<delegate>",
        "</delegate>",
        "<cancel>",
        "<update>",
    )


class Chunk(NamedTuple):
    """Inputs of one micro-turn for a batch of sessions.

    `text=None` and `frame=None` select the compiled variants without those positions. In a variant
    with them, PAD tokens and `has_frame` mark rows without text or without a frame.
    """

    audio: Array  # float32[b, turn_samples], the user's PCM in [-1, 1]
    text: Array | None = None  # int32[b, text_slots], tokens that arrived, PAD where empty
    frame: Array | None = None  # float32[b, size, size, 3] in [0, 1]
    has_frame: Array | None = None  # bool[b], required with `frame`
    active: Array | None = None  # bool[b], rows that take this step; None: all
    reset: Array | None = None  # bool[b], rows that start a fresh session before it; None: none
    seed: Array | None = None  # int32[b], seeds of these sessions, required with `reset`


class Reply(NamedTuple):
    """Outputs of one micro-turn."""

    audio: Array  # float32[b, turn_samples], the model's PCM in [-1, 1]
    text: Array  # int32[b], the text-out token
    user_transcript: Array  # int32[b, audio_positions], NONE where the user said nothing
    refused: Array  # bool[b], active rows whose inputs were unusable; their state is unchanged


class Note(NamedTuple):
    """Something that happened to a delegation, for the record of the session."""

    time: float  # s since the epoch
    delegation: int
    kind: str  # kind of an agent's event, or one of those in `background.delegations`
    text: str = ""
