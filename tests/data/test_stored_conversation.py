"""Conversations as stored sessions: tokens placed by hand, round trips, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest

from interaction.data import make_session, timing
from interaction.data.conversation_data import Conversation, Frame, TextEvent, Word, check
from interaction.data.delegation_sessions import make_delegation_session
from interaction.data.stored_conversation import from_stored, to_stored
from interaction.data.stored_session import ARRAYS
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

PAD, SILENT, HOLD, NONE = Special.PAD, Special.SILENT, Special.HOLD, Special.NONE
TOKENIZER = load_tokenizer()
RNG = np.random.default_rng(0)
SECONDS, TURNS = 4.0, 19  # the model's reply to the last 0.2 s would play after the end
USER = RNG.integers(-9_000, 9_000, 64_000).astype(np.int16)
MODEL = RNG.integers(-9_000, 9_000, 64_000).astype(np.int16)


def _id(word: str) -> int:
    (one,) = TOKENIZER.encode(word)
    return one


FIVE, SIX, TEN, AT = (_id(word) for word in ("five", "six", "ten", "at"))
TALK = Conversation(
    USER,
    MODEL,
    (Word("six", 0.1, 0.45), Word("ten", 0.5, 0.87)),
    # The first utterance starts inside micro-turn 5 of the user's clock, which is reply 4.
    (Word("five", 1.1, 1.5), Word("six", 1.5, 1.7), Word("ten", 1.95, 2.1), Word("at", 2.8, 3.0)),
)


def _text(record: dict[str, Any]) -> dict[int, int]:
    return {turn: token for turn, token in enumerate(record["text"].tolist()) if token != SILENT}


def test_tokens_stand_where_the_rules_of_time_say() -> None:
    record = to_stored(TALK, TOKENIZER)
    assert {name: record[name].dtype for name in ARRAYS} == ARRAYS
    np.testing.assert_array_equal(record["user"], USER[: TURNS * 3_200])
    np.testing.assert_array_equal(record["model"], MODEL[3_200:])
    # Replies 4 to 9 sound from 1.0 to 2.2 s, and 2.1 s + 0.04 s is in the last one. "six" (1.5 s)
    # sounds in reply 6 and may come 2 earlier, after "five"; "ten" (1.95 s) in reply 8, so in 6.
    # The next utterance starts in reply 13 and ends at 3.0 s, so in reply 14 with 0.04 s.
    wanted = {4: FIVE, 5: SIX, 6: TEN, 7: HOLD, 8: HOLD, 9: HOLD, 13: AT, 14: HOLD}
    assert _text(record) == wanted
    # 0.45 s + 0.04 s is in slot 4, 0.87 s + 0.04 s in slot 9.
    slots = record["user_transcript"].reshape(-1)
    assert slots.shape == (38,) and slots[[4, 9]].tolist() == [SIX, TEN]
    assert (np.delete(slots, [4, 9]) == NONE).all()
    assert json.loads(record["meta"])["left_out_tokens"] == 0
    assert (record["arrived"] == PAD).all() and not record["reasoning_wanted"].any()


def test_unknown_words_of_the_user_are_padding_and_not_silence() -> None:
    unknown = to_stored(TALK._replace(user_words=None), TOKENIZER)["user_transcript"]
    assert unknown.shape == (TURNS, 2) and (unknown == PAD).all()
    part = TALK._replace(user_unknown=((0.8, 1.2), (3.0, 3.5)))
    slots = to_stored(part, TOKENIZER)["user_transcript"].reshape(-1)
    # Words that end from 0.8 to 1.2 s stand in slots 8 to 12, those from 3.0 to 3.5 s in 30 to 35.
    assert np.flatnonzero(slots == PAD).tolist() == [8, 10, 11, 12, *range(30, 36)]
    assert slots[[4, 9]].tolist() == [SIX, TEN]


def test_text_events_become_tokens() -> None:
    events = (
        TextEvent(0.45, "arrived", "at five six ten"),
        TextEvent(0.5, "arrived_end"),
        TextEvent(2.4, "delegate", "at ten"),
        TextEvent(3.4, "cancel"),
    )
    record = to_stored(TALK._replace(events=events, model_words=()), TOKENIZER, text_slots=3)
    there = record["arrived"] != PAD
    assert record["arrived"][there].tolist() == [AT, FIVE, SIX, TEN, Special.END_DELEGATE]
    assert record["arrived_slot"][there].tolist() == [6, 7, 8, 9, 10]
    span = {11: Special.DELEGATE, 12: AT, 13: TEN, 14: Special.END_DELEGATE, 16: Special.CANCEL}
    assert _text(record) == span
    again = from_stored(record, TOKENIZER, text_slots=3)
    assert [event.kind for event in again.events] == [
        *("arrived", "arrived", "arrived_end", "delegate", "cancel")
    ]
    assert [event.text for event in again.events] == ["at five six", "ten", "", "at ten", ""]
    np.testing.assert_allclose([e.time for e in again.events], [0.4, 0.6, 0.6, 2.4, 3.4])


def test_fast_speech_loses_tokens_and_says_how_many() -> None:
    many = tuple(Word("five", 1.0 + 0.05 * i, 1.05 + 0.05 * i) for i in range(8))
    record = to_stored(TALK._replace(model_words=many), TOKENIZER)
    assert _text(record) == {4: FIVE, 5: FIVE, 6: FIVE}  # until 1.4 s and 0.04 s
    assert json.loads(record["meta"])["left_out_tokens"] == 5


def test_a_short_conversation_is_filled_with_silence() -> None:
    record = to_stored(TALK, TOKENIZER, turns=25)
    assert record["text"].shape == (25,) and record["user_transcript"].shape == (25, 2)
    for side, pcm in (("user", USER), ("model", MODEL[3_200:])):
        assert record[side].shape == (25 * 3_200,)
        np.testing.assert_array_equal(record[side][: len(pcm)], pcm)
        assert not record[side][len(pcm) :].any()


@pytest.mark.parametrize(
    ("change", "turns", "message"),
    [
        ({"model_words": None}, None, r"model_words: got None \(unknown\), wanted the words"),
        ({}, 18, r"user: got 4 s, wanted at most 19 micro-turns of 0.2 s"),
        ({"user": USER[:3_200], "model": MODEL[:3_200], "user_words": (), "model_words": ()}, None,
         r"user: got 0.2 s, wanted at least 0.4 s"),
        ({"model_words": (Word("five", 0.1, 0.5),)}, None,
         r"model_words\[0\]: got 'five' at 0.1 s, wanted a start of at least 0.2 s.*delayed"),
        ({"events": (TextEvent(1.0, "delegate", "ten"),)}, None,
         r"events\[0\] delegate: got 3 tokens from 1 s on, wanted micro-turns in which"),
        ({"events": (TextEvent(1.0, "arrived", "ten " * 33),)}, None,
         r"events: arrivals: got 33 tokens, wanted at most 32"),
        ({"user": USER[1:]}, None, r"model: got 64000 samples beside 63999"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused(
    change: dict[str, Any], turns: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"a.jsonl: line 3: {message}"):
        to_stored(TALK._replace(**change), TOKENIZER, "a.jsonl: line 3", turns)


def test_a_conversation_comes_back() -> None:
    """All but the frames, the user's last 0.2 s and the model's first 0.2 s."""
    frames = (Frame(0.0, np.zeros((2, 2, 3), np.uint8)),)
    talk = TALK._replace(user_unknown=((3.0, 3.5),), frames=frames, meta={"source": "a hand"})
    got = from_stored(to_stored(talk, TOKENIZER), TOKENIZER)
    for side in ("user_words", "model_words", "user_unknown"):
        assert getattr(got, side) == getattr(talk, side)
    assert got.frames == () and got.meta["source"] == "a hand"
    np.testing.assert_array_equal(got.user[:60_800], USER[:60_800])
    np.testing.assert_array_equal(got.model[3_200:], MODEL[3_200:])
    assert not got.user[60_800:].any() and not got.model[:3_200].any()
    unknown = to_stored(talk._replace(user_words=None, user_unknown=()), TOKENIZER)
    assert from_stored(unknown, TOKENIZER).user_words is None


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{", "meta: got Expecting property name"),
        ("3", "meta: got 'int' object is not iterable, wanted a JSON object"),
        ('{"words": 3}', "meta words: got 3, wanted an object"),
        ('{"words": {"version": 2}}', "meta words version: got 2, wanted 1"),
        ('{"words": {"version": 1}}', r"meta words: got KeyError\('user_unknown'\), wanted user,"),
    ],
)
def test_stored_sessions_that_are_refused(meta: str, message: str) -> None:
    record = to_stored(TALK, TOKENIZER) | {"meta": meta}
    with pytest.raises(ValueError, match=f"session 3: {message}"):
        from_stored(record, TOKENIZER, "session 3")


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    sessions = [make_session((5, i), scenario="plain") for i in range(3)]
    sessions += [
        make_session((5, i), scenario=name) for i in range(2) for name in ("pause", "stop")
    ]
    return sessions + [make_delegation_session((5, i)) for i in range(3)]


@pytest.mark.parametrize("with_words", [True, False])
def test_generated_sessions_come_back(made: list[dict[str, Any]], with_words: bool) -> None:
    for record in made:
        meta = json.loads(record["meta"])
        if not with_words:
            meta.pop("words")
        talk = from_stored(record | {"meta": json.dumps(meta)}, TOKENIZER, "here")
        again = to_stored(talk, TOKENIZER)
        for field in ("user", "model", "user_transcript", "arrived", "arrived_slot"):
            np.testing.assert_array_equal(again[field], record[field], err_msg=field)
        stops = [e["answer_end_turn"] for e in meta["events"] if e["answer"]]
        wrong = np.flatnonzero(again["text"] != record["text"])
        # An answer that was interrupted loses the words that were written and never said. Where the
        # words come from its tokens, they stand before its end at the latest.
        early = timing.LEAD if with_words else timing.LEAD + 1
        assert all(any(stop - early <= turn < stop for stop in stops) for turn in wrong)
        assert not with_words or (again["text"][wrong] == HOLD).all()
        kept = json.loads(again["meta"])
        assert kept["events"] == meta["events"] and kept["turns"] == meta["turns"]


def test_words_of_generated_sessions_are_those_that_were_said(made: list[dict[str, Any]]) -> None:
    for record in made:
        talk, meta = from_stored(record, TOKENIZER), json.loads(record["meta"])
        for event in meta["events"]:
            if event["kind"] in ("request", "pause_request", "tool_request"):
                said = [
                    word.text
                    for word in talk.user_words or ()
                    if event["start_s"] - 1e-4 <= word.start and word.end <= event["end_s"] + 1e-4
                ]
                assert " ".join(said) == event["text"]
        bare = from_stored(record | {"meta": "{}"}, TOKENIZER)
        exact, guessed = talk.user_words or (), bare.user_words or ()
        assert len(guessed) <= len(exact) <= len(guessed) + 1  # the last may end too late
        for one, other in zip(exact, guessed, strict=False):
            assert one.text == other.text and -0.1 < other.end - one.end < 0.4
        first = {round(word.start, 3) for word in talk.model_words or ()}
        for event in meta["events"]:
            if event["answer"]:
                assert round(0.2 * (event["answer_turn"] + 1), 3) in first
        check(talk, "here")
