"""Records of live conversations as data for training."""

import os

import numpy as np

from interaction.data import conversation_data, stored_conversation, timing
from interaction.data.conversation_data import Conversation, Frame, refuse, to_int16
from interaction.data.tokenizer import Tokenizer
from interaction.engine.session_record import Entry, SessionReader
from interaction.types import Special


def read_record(path: str | os.PathLike, tokenizer: Tokenizer) -> Conversation:
    """Reads a record; its whole sound is in memory, about half a gigabyte an hour.

    The user's words are unknown: the model's transcript of them is a guess, so it stands in
    `meta["user_transcript"]`, as [word, start, end]. What the model said and its times come from
    its tokens, see `stored_conversation.from_stored`. A record of a restored conversation begins
    where it was restored. A record without an end is read as far as it goes, see `meta["problem"]`.

    Args:
      path: A file that the engine recorded.
      tokenizer: That of the recorded model.

    Returns:
      The conversation, one micro-turn longer than the record: the last reply plays after the last
      input.

    Raises:
      ValueError: The record is missing, damaged, empty, or of a model with other micro-turns.
    """
    with SessionReader(path) as reader:
        entries: list[Entry] = []
        user, model = [], [np.zeros(timing.TURN, np.int16)]
        frames: list[Frame] = []
        for index, entry in enumerate(reader):
            where = f"{path}: micro-turn {entry.turn}"
            user.append(_pcm(entry.audio, where, "audio"))
            model.append(_pcm(entry.speech, where, "speech"))
            if entry.frame is not None:
                image = np.rint(np.clip(entry.frame, 0, 1) * 255).astype(np.uint8)
                frames.append(Frame(index * stored_conversation.TURN_S, image))
            # The sound is kept as int16 alone.
            entries.append(entry._replace(audio=user[-1][:0], speech=model[-1][:0], frame=None))
        header, problem = reader.header, reader.problem
    if not entries:
        fix = "leave it out"
        refuse(str(path), "record", "no micro-turns", "at least one", fix)
    user.append(np.zeros(timing.TURN, np.int16))
    words, written = stored_conversation.model_text([entry.text for entry in entries], tokenizer)
    arrivals = stored_conversation.arrival_events(*_arrived(entries), tokenizer)
    conversation = Conversation(
        user=np.concatenate(user),
        model=np.concatenate(model),
        user_words=None,
        model_words=words,
        events=tuple(sorted((*arrivals, *written), key=lambda event: event.time)),
        frames=tuple(frames),
        meta={
            **{"source": str(path), "model": header.model, "seed": header.seed},
            **{"time": header.time, "first_turn": header.turn, "problem": problem},
            "user_transcript": _transcript(entries, tokenizer),
        },
    )
    return conversation_data.check(conversation, str(path))


def _pcm(pcm: np.ndarray, where: str, field: str) -> np.ndarray:
    if len(pcm) != timing.TURN:
        wanted = f"{timing.TURN}, 0.2 s at 16 kHz"
        refuse(where, field, f"{len(pcm)} samples", wanted, "leave the record out")
    return to_int16(pcm, where, field)


def _arrived(entries: list[Entry]) -> tuple[list[int], list[int]]:
    """Micro-turn of each token that arrived, and the token."""
    found = [
        (index, token)
        for index, entry in enumerate(entries)
        for token in ([] if entry.arrived is None else entry.arrived.tolist())
        if token != Special.PAD
    ]
    return [turn for turn, _ in found], [token for _, token in found]


def _transcript(entries: list[Entry], tokenizer: Tokenizer) -> list[list]:
    """The model's transcript of the user as [word, start, end]."""
    slots = np.stack([entry.user_transcript for entry in entries])
    return [list(word) for word in stored_conversation.transcript_words(slots, tokenizer)]
