"""Stereo recordings with alignments in the layout of moshi-finetune.

A file of JSON lines lists {"path", "duration"}. Beside each recording stands a file of the same
name with the suffix .json: {"alignments": [[word, [start, end], speaker], ...]}, times in seconds.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile

from interaction.data import audio_file, conversation_data
from interaction.data.conversation_data import Conversation, Word, refuse, to_int16
from interaction.data.readers.json_lines import parse, read_lines, take

MAIN, OTHER = (
    "SPEAKER_MAIN",
    "SPEAKER_USER",
)  # the model, and the name that `write_moshi` gives users
LISTED_BESIDE_S = 0.1  # s; a listed duration may be so far from that of the recording


def read_moshi(path: str | os.PathLike, model_channel: int = 0) -> Iterator[Conversation]:
    """Reads the recordings that a file lists.

    Words of SPEAKER_MAIN are the model's, all others the user's. A recording without words of
    others has unknown user words, because the annotator of moshi-finetune transcribes the main
    speaker alone.

    Args:
      path: The file of JSON lines; paths in it are relative to its folder.
      model_channel: Channel of the model, 0 (left) or 1 (right); the other one is the user's.

    Yields:
      Conversations in the order of the file.

    Raises:
      ValueError: A file is missing or damaged, or breaks a rule, see `conversation_data.check`.
    """
    _check_channel(model_channel, str(path))
    for where, fields in read_lines(path):
        recording = pathlib.Path(path).parent / take(fields, "path", str, where)
        try:
            channels = audio_file.read_channels(recording)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if len(channels) != 2:
            fix = "put the model on the left channel and the user on the right one"
            refuse(where, str(recording), f"{len(channels)} channels", "2", fix)
        seconds = channels.shape[1] / audio_file.SAMPLE_RATE
        listed = take(fields, "duration", float, where)
        if abs(listed - seconds) > LISTED_BESIDE_S:
            fix = "list the recording again, or copy it again"
            refuse(where, "duration", f"{listed:g} s", f"{seconds:.3f} s as recorded", fix)
        model, user = _alignments(recording.with_suffix(".json"))
        conversation = Conversation(
            user=to_int16(channels[1 - model_channel], where, "user"),
            model=to_int16(channels[model_channel], where, "model"),
            user_words=conversation_data.clamped(user, seconds) if user else None,
            model_words=conversation_data.clamped(model, seconds),
            meta={"source": str(recording)},
        )
        yield conversation_data.check(conversation, f"{where}: {recording}")


def _check_channel(model_channel: int, where: str) -> None:
    if model_channel not in (0, 1):
        wanted = "0 (left) or 1 (right)"
        refuse(where, "model_channel", model_channel, wanted, "name the model's channel")


def _alignments(path: pathlib.Path) -> tuple[list[Word], list[Word]]:
    """The words of the main speaker, and those of all others."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(str(path), "file", error, '{"alignments": [...]}', "align the recording")
    model: list[Word] = []
    user: list[Word] = []
    for index, one in enumerate(take(parse(text, str(path)), "alignments", list, str(path))):
        match one:
            case [str(word), [int() | float() as start, int() | float() as end], str(speaker)]:
                if word.strip():  # aligners write silence as a word without letters
                    (model if speaker == MAIN else user).append(Word(word.strip(), start, end))
            case _:
                wanted, fix = "[word, [start, end], speaker]", "align the recording again"
                refuse(str(path), f"alignments[{index}]", f"{one!r:.80}", wanted, fix)
    return model, user


def write_moshi(
    folder: str | os.PathLike, conversations: Iterable[Conversation], model_channel: int = 0
) -> pathlib.Path:
    """Writes conversations in this layout: `data.jsonl`, and WAV files at 16 kHz beside it.

    Events, frames and meta are not written. User words that are known to be none come back as
    unknown.

    Args:
      folder: Made if it is missing.
      conversations: The model's words are known, the user's are known or unknown as a whole.
      model_channel: Channel of the model, 0 (left) or 1 (right).

    Returns:
      Path of `data.jsonl`.

    Raises:
      ValueError: A conversation is not valid, or its words are not known as above.
    """
    _check_channel(model_channel, str(folder))
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, one in enumerate(conversations):
        where = f"{folder}: conversation {index}"
        conversation_data.check(one, where)
        if one.model_words is None:
            refuse(where, "model_words", "None (unknown)", "words", "align the model's side first")
        if one.user_unknown:
            fix = "pass user_words=None and user_unknown=()"
            refuse(where, "user_unknown", f"{len(one.user_unknown)} spans", "none", fix)
        sides = ((MAIN, one.model_words), (OTHER, one.user_words or ()))
        alignments = [
            [word.text, [word.start, word.end], speaker]
            for speaker, words in sides
            for word in words
        ]
        alignments.sort(key=lambda entry: entry[1])
        recording = folder / f"{index:06d}.wav"
        channels = (one.model, one.user) if model_channel == 0 else (one.user, one.model)
        soundfile.write(str(recording), np.stack(channels, axis=1), audio_file.SAMPLE_RATE)
        recording.with_suffix(".json").write_text(json.dumps({"alignments": alignments}))
        lines.append(json.dumps({"path": recording.name, "duration": one.seconds}))
    path = folder / "data.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
