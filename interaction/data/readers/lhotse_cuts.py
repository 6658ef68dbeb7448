"""Lhotse cuts as JSON lines, as NeMo trains duplex models on them; read without lhotse.

A cut is a part of a recording, the user's side. `custom.target_audio` is the recording of the
agent, of which the same part is read.
"""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from interaction.data import audio_file, conversation_data
from interaction.data.conversation_data import Conversation, Word, refuse, to_int16
from interaction.data.readers.json_lines import Fields, read_lines, take

USER, AGENT = "user", "agent"
_Load = Callable[[pathlib.Path], np.ndarray]
SHORT_S = 0.1  # s; a recording may end so much before its cut, and silence fills the rest


def read_lhotse(
    path: str | os.PathLike, root: str | os.PathLike | None = None
) -> Iterator[Conversation]:
    """Reads the cuts of a file.

    Times of supervisions and words count from the start of the cut. Words come from
    `supervision.alignment.word`. A supervision with text and without them makes the words unknown:
    the user's during the supervision, the agent's in the whole cut. A cut without supervisions of
    the user has unknown user words. Words outside the cut are left out, and those across its edge
    are cut there. The supervisions stand in `meta` as they came, without alignments.

    Args:
      path: The file of JSON lines, compressed if it ends in `.gz`.
      root: Folder of relative paths in it; None: the folder of the file.

    Yields:
      Conversations in the order of the file.

    Raises:
      ValueError: A file is missing or damaged, a cut has no target_audio, or breaks a rule, see
        `conversation_data.check`.
    """
    folder = pathlib.Path(path).parent if root is None else pathlib.Path(root)
    # Neighbouring cuts are often parts of one recording.
    load = functools.lru_cache(maxsize=2)(audio_file.read_channels)
    for where, cut in read_lines(path):
        where = f"{where}: cut {take(cut, 'id', str, where)}"
        yield conversation_data.check(_conversation(cut, folder, load, where), where)


def _conversation(cut: Fields, folder: pathlib.Path, load: _Load, where: str) -> Conversation:
    start, seconds = take(cut, "start", float, where), take(cut, "duration", float, where)
    first, count = round(start * audio_file.SAMPLE_RATE), round(seconds * audio_file.SAMPLE_RATE)
    if first < 0 or count < 1:
        got = f"{seconds:g} s from {start:g} s on"
        refuse(where, "start, duration", got, "a part of the recording", "correct the cut")
    custom = cut.get("custom")
    target = custom.get("target_audio") if isinstance(custom, dict) else None
    if not isinstance(custom, dict) or not isinstance(target, dict):
        fix = "add the recording of the agent to the cut"
        refuse(where, "custom.target_audio", f"{target!r:.60}", "a recording", fix)
    recording = take(cut, "recording", dict, where)
    channel = take(cut, "channel", (int, list), where)
    other = custom.get("target_audio_channel_selector", 0)
    sides = {
        "recording": _channel(recording, channel, folder, load, f"{where}: recording"),
        "custom.target_audio": _channel(target, other, folder, load, f"{where}: target_audio"),
    }
    parts = {
        field: to_int16(_part(pcm, first, count, f"{where}: {field}"), where, field)
        for field, pcm in sides.items()
    }
    supervisions = take(cut, "supervisions", list, where)
    words = {USER: [], AGENT: []}
    unknown = {USER: [], AGENT: []}
    for index, one in enumerate(supervisions):
        place = f"{where}: supervisions[{index}]"
        speaker = _speaker(one, place)
        found = _words(one, place)
        if found is None:
            unknown[speaker].append(_span(one, place))
        words[speaker] += found or []
    seconds = count / audio_file.SAMPLE_RATE
    speakers = {_speaker(one, where) for one in supervisions}
    agent_known = AGENT in speakers or not np.any(parts["custom.target_audio"])
    return Conversation(
        user=parts["recording"],
        model=parts["custom.target_audio"],
        user_words=_inside(words[USER], seconds) if USER in speakers else None,
        model_words=(
            _inside(words[AGENT], seconds) if agent_known and not unknown[AGENT] else None
        ),
        user_unknown=_joined(unknown[USER], seconds),
        meta={"source": cut["id"], "supervisions": [_without_alignment(s) for s in supervisions]},
    )


def _channel(
    recording: Fields, channel: object, folder: pathlib.Path, load: _Load, where: str
) -> np.ndarray:
    """One channel of a whole recording, float32[n]."""
    channel = channel[0] if isinstance(channel, list) and len(channel) == 1 else channel
    if recording.get("transforms"):
        got = f"{recording['transforms']!r:.80}"
        refuse(where, "transforms", got, "none", "save the transformed recording as a file")
    sources = take(recording, "sources", list, where)
    for index, source in enumerate(sources):
        if not isinstance(source, dict) or source.get("type") != "file":
            fix = "save the recordings as files"
            refuse(where, f"sources[{index}]", f"{source!r:.80}", '"type": "file"', fix)
        channels = take(source, "channels", list, f"{where}: sources[{index}]")
        if channel in channels:
            try:
                pcm = load(folder / take(source, "source", str, f"sources[{index}]"))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if len(pcm) != len(channels):
                got, wanted = f"{len(channels)} channels", f"the {len(pcm)} of the file"
                refuse(where, f"sources[{index}].channels", got, wanted, "correct the recording")
            return pcm[channels.index(channel)]
    there = [one for source in sources for one in source["channels"]]
    fix = "make a cut of one channel of its recording"
    refuse(where, "channel", f"{channel!r:.60}", f"one of {there}", fix)


def _part(pcm: np.ndarray, first: int, count: int, where: str) -> np.ndarray:
    """`count` samples from `first` on, with a little silence where the recording ends before."""
    part = pcm[first : first + count]
    missing = count - len(part)
    if missing > SHORT_S * audio_file.SAMPLE_RATE:
        got = f"{len(pcm) / audio_file.SAMPLE_RATE:g} s"
        wanted = f"{(first + count) / audio_file.SAMPLE_RATE:g} s, the end of the cut"
        refuse(where, "duration", got, wanted, "shorten the cut, or copy the recording again")
    return np.pad(part, (0, missing))


def _speaker(supervision: Fields, where: str) -> str:
    if not isinstance(supervision, dict):
        refuse(where, "supervision", f"{supervision!r:.60}", "an object", "correct the cut")
    speaker = supervision.get("speaker")
    if speaker not in (USER, AGENT):
        fix = "rename the speakers"
        refuse(where, "speaker", f"{speaker!r:.60}", f"{USER!r} or {AGENT!r}", fix)
    return speaker


def _span(supervision: Fields, where: str) -> tuple[float, float]:
    start = take(supervision, "start", float, where)
    return start, start + take(supervision, "duration", float, where)


def _words(supervision: Fields, where: str) -> list[Word] | None:
    """The words of a supervision; None if it has text and no times of words."""
    alignment, text = supervision.get("alignment") or {}, supervision.get("text") or ""
    if not isinstance(alignment, dict) or not isinstance(text, str):
        got = f"{alignment!r:.40} and {text!r:.40}"
        refuse(where, "alignment, text", got, "an object and a string", "correct the cut")
    items = alignment.get("word") or []
    if not isinstance(items, list):
        refuse(where, "alignment.word", f"{items!r:.60}", "a list", "align it again")
    if not items and text.split():
        return None
    words = []
    for index, item in enumerate(items):
        match item:
            case [str(word), int() | float() as start, int() | float() as length, *_] if (
                math.isfinite(start) and math.isfinite(length)
            ):
                if word.strip():  # aligners write silence as a word without letters
                    words.append(Word(word.strip(), start, start + length))
            case _:
                place, wanted = f"alignment.word[{index}]", "[word, start, duration]"
                refuse(where, place, f"{item!r:.80}", wanted, "align it again")
    return words


def _inside(words: list[Word], seconds: float) -> tuple[Word, ...]:
    """The words that are inside the cut, those across its edge cut there."""
    there = [word for word in words if word.end > 0 and word.start < seconds]
    cut = [Word(text, max(start, 0.0), min(end, seconds)) for text, start, end in there]
    return tuple(sorted(cut, key=lambda word: (word.start, word.end)))


def _joined(spans: list[tuple[float, float]], seconds: float) -> tuple[tuple[float, float], ...]:
    """Spans inside the cut, those that overlap as one."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        start, end = max(start, 0.0), min(end, seconds)
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif start < end:
            found.append((start, end))
    return tuple(found)


def _without_alignment(supervision: Fields) -> Fields:
    return {name: value for name, value in supervision.items() if name != "alignment"}
