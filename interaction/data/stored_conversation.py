"""Conversations as stored sessions, which training reads, and back.

A stored session has tokens by micro-turns, so a tokenizer is needed. The words with their times
stand in its `meta` under "words", so that they come back as they were.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from interaction.data import conversation_data, reasoning_tokens, timing
from interaction.data.audio_file import SAMPLE_RATE
from interaction.data.clips import Clip
from interaction.data.conversation_data import (
    ARRIVED,
    ARRIVED_END,
    CANCEL,
    DELEGATE,
    UPDATE,
    Conversation,
    TextEvent,
    Word,
    refuse,
)
from interaction.data.stored_session import StoredSession
from interaction.data.tokenizer import Tokenizer
from interaction.types import Special

TURN_S = timing.TURN / SAMPLE_RATE  # s of a micro-turn
SLOT_S = timing.SLOT / SAMPLE_RATE  # s of a slot of the user transcript
JOIN_S = 0.3  # s; in a shorter pause the model holds, after a longer one it starts anew
LONGEST_GUESS_S = 0.3  # s; longest word of a user whose start is not known
_NO_SOUND = np.zeros(0, np.float32)
_OPENING = {DELEGATE: Special.DELEGATE, UPDATE: Special.UPDATE}


# Words in `meta`.


def pack_words(
    user: Sequence[Word] | None,
    model: Sequence[Word] | None,
    user_unknown: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """The words of both sides as `meta["words"]` of a stored session, in JSON types."""
    sides = {"user": user, "model": model}
    lists = {side: words and [list(word) for word in words] for side, words in sides.items()}
    unknown = [list(span) for span in user_unknown]
    return {"version": conversation_data.VERSION, **lists, "user_unknown": unknown}


def _unpack_words(packed: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of a conversation from `meta["words"]`."""
    if not isinstance(packed, dict):
        refuse(where, "meta words", f"{packed!r:.60}", "an object", "make it again")
    if packed.get("version") != conversation_data.VERSION:
        wanted = str(conversation_data.VERSION)
        refuse(where, "meta words version", packed.get("version"), wanted, "make it again")

    def words(side: str) -> tuple[Word, ...] | None:
        return None if packed[side] is None else tuple(Word(*word) for word in packed[side])

    try:
        unknown = tuple((start, end) for start, end in packed["user_unknown"])
        found = {"user_words": words("user"), "model_words": words("model")}
    except (KeyError, TypeError, ValueError) as error:
        fix = "make the session again"
        refuse(where, "meta words", repr(error), "user, model and user_unknown", fix)
    return {**found, "user_unknown": unknown}


# To stored sessions.


def to_stored(
    conversation: Conversation,
    tokenizer: Tokenizer,
    where: str = "conversation",
    turns: int | None = None,
    text_slots: int = 4,
) -> StoredSession:
    """Converts a conversation to a stored session.

    The tokens follow the clock rules of `timing`: the text-out token of a word stands at most two
    micro-turns before its sound, and a token of the user transcript follows the end of its word.
    Where the user's words are unknown the transcript is PAD, which no loss counts.

    What a stored session cannot represent:
      - sound of the model in the first 0.2 s, and of the user in the last micro-turn: reply n plays
        one micro-turn after the sound to which it replies;
      - sound of the model outside its words, such as laughter: those micro-turns are SILENT;
      - more than one token of the model in a micro-turn: in fast speech tokens come later, and
        those that would come after the end of the utterance are left out, and counted in
        `meta["left_out_tokens"]`;
      - words that the model wrote and did not say because it was interrupted;
      - frames; and the reasoning of a background model, whose fields are empty.

    Args:
      conversation: Any that is valid for `conversation_data.check`; the model's words are known.
      tokenizer: That of the model to be trained.
      where: Its place, for error messages.
      turns: Length in micro-turns, because all sessions of a data set are equally long; silence of
        both sides fills the rest. None: the conversation's own length.
      text_slots: Most tokens that arrive in a micro-turn, see `ModelConfig.text_slots`.

    Returns:
      See `stored_session`.

    Raises:
      ValueError: The conversation is not valid, too short, too long, has unknown words of the model
        or more text than fits.
    """
    conversation_data.check(conversation, where)
    own = -(-len(conversation.user) // timing.TURN) - 1
    turns = own if turns is None else turns
    if own < 1 or own > turns:
        wanted = "at least 0.4 s" if own < 1 else f"at most {turns + 1} micro-turns of 0.2 s"
        refuse(where, "user", f"{conversation.seconds:g} s", wanted, "cut it, or leave it out")
    if conversation.model_words is None:
        fix = "align the model's side with its words first"
        refuse(where, "model_words", "None (unknown)", "the words of the model with times", fix)
    text, left_out = _text_out(conversation.model_words, tokenizer, turns, where)
    _write_events(text, conversation.events, tokenizer, where)
    words = pack_words(conversation.user_words, conversation.model_words, conversation.user_unknown)
    more = {"turns": turns, "words": words, "left_out_tokens": left_out}
    return {
        "user": _padded(conversation.user, turns),
        "model": _padded(conversation.model[timing.TURN :], turns),
        "text": text,
        "user_transcript": _user_transcript(conversation, tokenizer, turns),
        **reasoning_tokens.reasoning_arrays(0, []),
        **_arrivals(conversation.events, tokenizer, turns, text_slots, where),
        "meta": json.dumps({"events": [], **conversation.meta, **more}),
    }


def _padded(pcm: np.ndarray, turns: int) -> np.ndarray:
    pcm = pcm[: turns * timing.TURN]
    return np.pad(pcm, (0, turns * timing.TURN - len(pcm)))


def _clip(words: Sequence[Word], origin: float = 0.0) -> Clip:
    """Words as a clip without sound whose times count from `origin`."""
    tiny = 1e-7 - origin  # a time that was rounded stays in its sample
    starts = np.array([word.start + tiny for word in words])
    ends = np.array([word.end + tiny for word in words])
    return Clip(" ".join(word.text for word in words), _NO_SOUND, starts, ends)


def _utterances(words: Sequence[Word]) -> list[list[Word]]:
    """The words, parted at pauses that last longer than `JOIN_S`."""
    found: list[list[Word]] = []
    over = 0.0
    for word in words:
        if not found or word.start - over > JOIN_S:
            found.append([])
        found[-1].append(word)
        over = max(over, word.end)
    return found


def _text_out(
    words: Sequence[Word], tokenizer: Tokenizer, turns: int, where: str
) -> tuple[np.ndarray, int]:
    """Text-out tokens int32[turns] without control tokens, and the number of those left out."""
    text = np.full(turns, Special.SILENT, np.int32)
    if words and words[0].start < TURN_S - 1e-6:
        fix = f"pass `conversation_data.delayed(conversation, {TURN_S})`"
        got = f"{words[0].text!r} at {words[0].start:g} s"
        refuse(where, "model_words[0]", got, f"a start of at least {TURN_S:g} s", fix)
    left_out = 0
    for spoken in _utterances(words):
        first = int((spoken[0].start + 1e-7) * SAMPLE_RATE) // timing.TURN - 1
        clip = _clip(spoken, (first + 1) * TURN_S)
        end = timing.answer_end_turn(first, int(clip.ends.max() * SAMPLE_RATE))
        tokens = timing.answer_tokens(tokenizer, clip, first, end)
        for turn, token in tokens.items():
            if turn < turns:
                text[turn] = token
        wanted = sum(len(tokenizer.encode(word.text)) for word in spoken)
        placed = sum(token != Special.HOLD for turn, token in tokens.items() if turn < turns)
        left_out += wanted - placed
    return text, left_out


def _write_events(
    text: np.ndarray, events: Sequence[TextEvent], tokenizer: Tokenizer, where: str
) -> None:
    """Writes the control tokens of the model, one a micro-turn, into its text-out tokens."""
    for index, (time, kind, words) in enumerate(events):
        if kind == CANCEL:
            tokens = [Special.CANCEL]
        elif kind in _OPENING:
            tokens = [_OPENING[kind], *tokenizer.encode(words.strip()), Special.END_DELEGATE]
        else:
            continue
        first = max(round(time / TURN_S) - 1, 0)  # the micro-turn that ends then
        place = text[first : first + len(tokens)]
        if len(place) < len(tokens):
            got = f"{len(tokens)} tokens from {time:g} s on"
            wanted = f"room for them before the end, {len(text) * TURN_S:g} s"
            refuse(where, f"events[{index}] {kind}", got, wanted, "move the event, or add silence")
        if np.any((place != Special.SILENT) & (place != Special.HOLD)):
            got = f"{len(tokens)} tokens from {time:g} s on"
            wanted = "micro-turns in which the model says and writes nothing else"
            refuse(where, f"events[{index}] {kind}", got, wanted, "move the event to a pause")
        place[:] = tokens


def _arrivals(
    events: Sequence[TextEvent], tokenizer: Tokenizer, turns: int, text_slots: int, where: str
) -> dict[str, np.ndarray]:
    """The fields `arrived` and `arrived_slot`."""
    found: list[tuple[int, int]] = []
    free = 0
    for index, (time, kind, words) in enumerate(events):
        if kind not in (ARRIVED, ARRIVED_END):
            continue
        tokens = tokenizer.encode(words.strip()) if kind == ARRIVED else [Special.END_DELEGATE]
        for token in tokens:
            slot = max(int((time + 1e-7) / TURN_S) * text_slots, free)
            if slot >= turns * text_slots:
                got, wanted = f"{time:g} s", f"room for its tokens before {turns * TURN_S:g} s"
                refuse(where, f"events[{index}] {kind}", got, wanted, "move it, or add silence")
            found.append((slot, token))
            free = slot + 1
    try:
        return reasoning_tokens.arrival_arrays(found)
    except ValueError as error:
        raise ValueError(f"{where}: events: {error}") from error


def _user_transcript(conversation: Conversation, tokenizer: Tokenizer, turns: int) -> np.ndarray:
    """The field `user_transcript`, PAD where it is unknown."""
    if conversation.user_words is None:
        return np.full((turns, 2), Special.PAD, np.int32)
    spoken = [(0, _clip(conversation.user_words))]
    slots = timing.transcript_tokens(tokenizer, spoken, turns).reshape(-1)
    for start, end in conversation.user_unknown:
        # A word that ends in the span could stand in these slots.
        delay = timing.TRANSCRIPT_DELAY / SAMPLE_RATE
        part = slots[int((start + delay) / SLOT_S) : int((end + delay) / SLOT_S) + 1]
        part[part == Special.NONE] = Special.PAD
    return slots.reshape(turns, 2)


# From stored sessions, and from tokens in general.


def from_stored(
    record: StoredSession, tokenizer: Tokenizer, where: str = "record", text_slots: int = 4
) -> Conversation:
    """Converts a stored session to a conversation.

    The words come from `meta["words"]`. Without it they come from the tokens: then a word of the
    model starts up to 0.4 s too early or too late, and one of the user ends up to 0.1 s beside its
    end and its start is a guess. The reasoning of a background model is lost.

    Args:
      record: See `stored_session`.
      tokenizer: That of the record.
      where: Its place, for error messages.
      text_slots: That of the record.

    Returns:
      A conversation that is one micro-turn longer: the last reply plays after the last input.

    Raises:
      ValueError: The record breaks a rule, see `conversation_data.check`.
    """
    try:
        meta = dict(json.loads(record["meta"]))
    except (TypeError, ValueError) as error:
        refuse(where, "meta", error, "a JSON object", "make the session again")
    packed = meta.pop("words", None)
    meta.pop("left_out_tokens", None)
    silence = np.zeros(timing.TURN, np.int16)
    spoken, written = model_text(record["text"].tolist(), tokenizer)
    transcript = record["user_transcript"]
    words: dict[str, Any] = {
        "user_words": transcript_words(transcript, tokenizer),
        "model_words": spoken,
        "user_unknown": _unknown_spans(transcript),
    }
    if np.all(transcript == Special.PAD):
        words |= {"user_words": None, "user_unknown": ()}
    if packed is not None:
        words = _unpack_words(packed, where)
    there = record["arrived"] != Special.PAD
    slots, tokens = record["arrived_slot"][there], record["arrived"][there]
    arrivals = arrival_events((slots // text_slots).tolist(), tokens.tolist(), tokenizer)
    conversation = Conversation(
        user=np.concatenate([record["user"], silence]),
        model=np.concatenate([silence, record["model"]]),
        events=tuple(sorted((*arrivals, *written), key=lambda event: event.time)),
        meta=meta,
        **words,
    )
    return conversation_data.check(conversation, where)


def _grouped(tokens: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """(index of its first token, text) of each word of a run of tokens."""
    firsts: list[int] = []
    blank = False  # the word has only white space yet
    for index, token in enumerate(tokens):
        empty = not tokenizer.decode([token])
        pair, before = tokens[max(index - 1, 0) : index + 1], tokens[max(index - 1, 0) : index]
        longer = len(tokenizer.decode(pair).split()) > len(tokenizer.decode(before).split())
        if not firsts or (not blank and (empty or longer)):
            firsts.append(index)
            blank = empty
        blank = blank and empty
    bounds = itertools.pairwise([*firsts, len(tokens)])
    words = [(first, tokenizer.decode(tokens[first:end])) for first, end in bounds]
    return [(first, text) for first, text in words if text]


def model_text(
    text: Sequence[int], tokenizer: Tokenizer
) -> tuple[tuple[Word, ...], tuple[TextEvent, ...]]:
    """What the model says and what it writes, from the text-out tokens of all micro-turns.

    A word starts with the sound of its micro-turn until the model holds for the first time in an
    utterance, and two micro-turns later from then on, see `timing.LEAD`.
    """
    words: list[Word] = []
    events: list[TextEvent] = []
    opened = -1  # micro-turn of the token that opened a span
    said: list[tuple[int, int]] = []  # (micro-turn, token) of the utterance or the span
    closing = [*text, Special.SILENT]
    for turn, token in enumerate(closing):
        if token >= Special.COUNT or (token == Special.HOLD and opened < 0):
            said.append((turn, token))
            continue
        if opened >= 0:
            request = tokenizer.decode([one for _, one in said])
            if request.split():
                kind = DELEGATE if text[opened] == Special.DELEGATE else UPDATE
                events.append(TextEvent((opened + 1) * TURN_S, kind, request))
        else:
            words += _utterance_words(said, turn, tokenizer)
        if token == Special.CANCEL:
            events.append(TextEvent((turn + 1) * TURN_S, CANCEL))
        opened = turn if token in (Special.DELEGATE, Special.UPDATE) else -1
        said = [(turn, token)] if token == Special.HOLD else []
    return tuple(words), tuple(events)


def _utterance_words(said: Sequence[tuple[int, int]], end: int, tokenizer: Tokenizer) -> list[Word]:
    """The words of an utterance, from its (micro-turn, token) up to micro-turn `end`."""
    tokens = [(turn, token) for turn, token in said if token != Special.HOLD]
    if not tokens:
        return []
    starts, lead = [], 0
    for index, (turn, _) in enumerate(tokens):
        if index and turn > tokens[index - 1][0] + 1:
            lead = timing.LEAD
        starts.append((min(turn + lead, end - 1) + 1) * TURN_S)
    words = _grouped([token for _, token in tokens], tokenizer)
    over = (end + 1) * TURN_S - timing.END_MARGIN / SAMPLE_RATE
    bounds = [*(starts[index] for index, _ in words), over]
    pairs = zip(words, itertools.pairwise(bounds), strict=True)
    return [Word(word, start, stop) for (_, word), (start, stop) in pairs]


def transcript_words(user_transcript: np.ndarray, tokenizer: Tokenizer) -> tuple[Word, ...]:
    """The words of a user transcript; their starts are guesses.

    Args:
      user_transcript: int32[turns, slots], special tokens where there is no word.
      tokenizer: That of the tokens.
    """
    slots, slot_s = user_transcript.reshape(-1), TURN_S / user_transcript.shape[1]
    places = np.flatnonzero(slots >= Special.COUNT)
    words: list[Word] = []
    before = 0.0
    for index, text in _grouped(slots[places].tolist(), tokenizer):
        end = (int(places[index]) + 0.5) * slot_s
        words.append(Word(text, max(before, end - LONGEST_GUESS_S), end))
        before = end
    return tuple(words)


def _unknown_spans(user_transcript: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The spans whose slots are PAD."""
    unknown = np.concatenate([[False], user_transcript.reshape(-1) == Special.PAD, [False]])
    edges = np.flatnonzero(unknown[1:] != unknown[:-1]).reshape(-1, 2)
    # In the middle of the first and the last slot, so that the same slots become PAD again.
    return tuple(
        ((first * 10 + 1) * SLOT_S / 10, (last * 10 - 9) * SLOT_S / 10)
        for first, last in edges.tolist()
    )


def arrival_events(
    turns: Sequence[int], tokens: Sequence[int], tokenizer: Tokenizer
) -> tuple[TextEvent, ...]:
    """Text that arrives, as one event for the words of a micro-turn.

    Args:
      turns: Micro-turn of each token, ascending.
      tokens: Words, and END_DELEGATE after a complete text.
      tokenizer: That of the tokens.
    """
    events: list[TextEvent] = []
    run: list[tuple[int, int]] = []
    for turn, token in [*zip(turns, tokens, strict=True), (0, Special.END_DELEGATE)]:
        if token >= Special.COUNT:
            run.append((turn, token))
            continue
        words = _grouped([one for _, one in run], tokenizer)
        by_turn = itertools.groupby(words, key=lambda word: run[word[0]][0])
        for at, group in by_turn:
            events.append(TextEvent(at * TURN_S, ARRIVED, " ".join(word for _, word in group)))
        if token == Special.END_DELEGATE:
            events.append(TextEvent(turn * TURN_S, ARRIVED_END))
        run = []
    return tuple(events[:-1])
