"""The schema of conversations: what it refuses, with the message, and the helpers beside it."""

import re
from typing import Any

import numpy as np
import pytest

from interaction.data import conversation_data
from interaction.data.conversation_data import Conversation, Frame, TextEvent, Word, check

PCM = np.arange(16_000, dtype=np.int16)  # 1 s
GOOD = Conversation(
    user=PCM,
    model=PCM[::-1],
    user_words=(Word("hi", 0.1, 0.2), Word("there", 0.2, 0.4)),
    model_words=(Word("hello", 0.5, 1.0),),
    user_unknown=((0.5, 0.6), (0.6, 0.7)),
    events=(TextEvent(0.0, "arrived", "at five"), TextEvent(1.0, "arrived_end")),
    frames=(Frame(0.0, np.zeros((2, 3, 3), np.uint8)),),
    meta={"source": "a hand"},
)
IMAGE = np.zeros((2, 2, 3), np.uint8)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "version: got 2, wanted 1; read its source again"),
    ({"user": PCM.astype(np.float32)}, "user: got float32[16000], wanted int16[n]"),
    ({"user": PCM[None]}, "user: got int16[1, 16000], wanted int16[n]"),
    ({"model": [0, 1]}, "model: got list, wanted int16[n]"),
    ({"user": PCM[:0]}, "user: got no samples, wanted at least one"),
    ({"model": PCM[1:]}, "model: got 15999 samples beside 16000 of the user, wanted equal lengths"),
    ({"user_words": (Word(" ", 0, 1),)}, "user_words[0]: got ' ', wanted one word"),
    ({"user_words": (Word("two words", 0, 1),)}, "user_words[0]: got 'two words', wanted one"),
    ({"model_words": (Word("a ", 0, 1),)}, "model_words[0]: got 'a ', wanted one word"),
    ({"user_words": (Word("a", 0.5, 1.01),)}, "user_words[0] 'a': got 0.5..1.01 s, wanted 0 <="),
    ({"user_words": (Word("a", -0.1, 1),)}, "user_words[0] 'a': got -0.1..1 s, wanted"),
    ({"user_words": (Word("a", 0.5, 0.4),)}, "user_words[0] 'a': got 0.5..0.4 s, wanted"),
    ({"user_words": (Word("a", float("nan"), 1),)}, "user_words[0] 'a': got nan..1 s, wanted"),
    ({"model_words": (Word("a", 0.5, 0.6), Word("b", 0.4, 0.7))}, "model_words[1] 'b': got 0.4 s"),
    ({"user_words": None}, "user_unknown: got 2 spans beside user_words=None, wanted none"),
    ({"user_unknown": ((0.9, 1.2),)}, "user_unknown[0]: got 0.9..1.2 s, wanted 0 <="),
    ({"user_unknown": ((0.1, 0.5), (0.4, 0.6))}, "user_unknown[1]: got 0.4 s, wanted a start"),
    ({"events": (TextEvent(0, "note", "a"),)}, "events[0]: got kind 'note', wanted one of"),
    ({"events": (TextEvent(0, "arrived", ""),)}, "events[0] arrived: got '', wanted words"),
    ({"events": (TextEvent(0, "cancel", "it"),)}, "events[0] cancel: got 'it', wanted text"),
    ({"events": (TextEvent(1.5, "cancel"),)}, "events[0] cancel: got 1.5..1.5 s, wanted"),
    ({"events": (TextEvent(0.5, "cancel"), TextEvent(0, "cancel"))}, "events[1] cancel: got 0 s"),
    ({"frames": (Frame(0, IMAGE / 2),)}, "frames[0]: got float64[2, 2, 3], wanted uint8"),
    ({"frames": (Frame(0, IMAGE[..., :1]),)}, "frames[0]: got shape [2, 2, 1], wanted"),
    ({"frames": (Frame(2, IMAGE),)}, "frames[0]: got 2..2 s, wanted 0 <="),
    ({"frames": (Frame(0.5, IMAGE), Frame(0.4, IMAGE))}, "frames[1]: got 0.4 s, wanted at least"),
    ({"meta": {"a": PCM}}, "meta: got Object of type ndarray"),
    ({"meta": {"a": float("inf")}}, "meta: got Out of range float values"),
]


def test_a_sound_conversation_passes() -> None:
    assert check(GOOD, "here") is GOOD
    assert GOOD.seconds == 1.0
    nothing_known = GOOD._replace(user_words=None, model_words=None, user_unknown=())
    assert check(nothing_known, "here") is nothing_known


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_breaks_a_rule_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a.jsonl: line 3: {message}")) as caught:
        check(GOOD._replace(**change), "a.jsonl: line 3")
    assert re.search(r": got .*, wanted .*; \w", str(caught.value))


def test_pcm_in_16_bits_is_kept_and_the_rest_is_clipped() -> None:
    kept = np.array([-32_768, -1, 0, 1, 32_767], np.int16)
    got = conversation_data.to_int16(kept.astype(np.float32) / 32_768, "a.wav", "user")
    assert got.dtype == np.int16 and got.tolist() == kept.tolist()
    loud = np.array([-1.5, 1.0, 0.6 / 32_768], np.float32)
    assert conversation_data.to_int16(loud, "a.wav", "user").tolist() == [-32_768, 32_767, 1]
    with pytest.raises(ValueError, match=r"a.wav: model: got 2 samples that are NaN or Inf"):
        conversation_data.to_int16(np.array([np.nan, np.inf, 0], np.float32), "a.wav", "model")


def test_times_a_little_outside_are_moved_inside() -> None:
    words = [Word("b", 0.5, 1.05), Word("a", -0.05, 0.3), Word("c", 0.9, 1.2)]
    got = conversation_data.clamped(words, 1.0)
    assert got == (Word("a", 0.0, 0.3), Word("b", 0.5, 1.0), Word("c", 0.9, 1.2))


def test_a_delay_moves_all_times() -> None:
    later = check(conversation_data.delayed(GOOD, 0.25), "here")
    assert later.user.tolist() == [0] * 4_000 + PCM.tolist()
    assert later.model.tolist() == [0] * 4_000 + PCM[::-1].tolist()
    assert later.user_words == (Word("hi", 0.35, 0.45), Word("there", 0.45, 0.65))
    assert later.model_words == (Word("hello", 0.75, 1.25),)
    assert np.allclose(later.user_unknown, [(0.75, 0.85), (0.85, 0.95)])
    assert [event.time for event in later.events] == [0.25, 1.25]
    assert [frame.time for frame in later.frames] == [0.25]
    assert conversation_data.delayed(GOOD._replace(user_words=None), 0.25).user_words is None
