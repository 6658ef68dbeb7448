"""Records of live conversations as data: a record written by hand."""

import pathlib

import numpy as np
import pytest

from interaction.data.conversation_data import TextEvent, Word
from interaction.data.stored_conversation import to_stored
from interaction.data.tokenizer import load_tokenizer
from interaction.engine.recorded_conversation import read_record
from interaction.engine.session_record import Entry, Header, SessionWriter
from interaction.types import Special

TOKENIZER = load_tokenizer()
(FIVE,), (SIX,), (TEN,) = (TOKENIZER.encode(word) for word in ("five", "six", "ten"))
RNG = np.random.default_rng(2)
USER, MODEL = RNG.integers(-9_000, 9_000, (2, 8, 3_200)).astype(np.int16)
TEXT = [Special.SILENT, FIVE, Special.HOLD, SIX, Special.HOLD, Special.HOLD, Special.SILENT]
TEXT += [Special.CANCEL]


def _write(path: pathlib.Path, samples: int = 3_200, turns: int = 8) -> pathlib.Path:
    writer = SessionWriter(path, Header("abc", {}, 7, 40, {}, 0.5))
    for turn in range(turns):
        slots = np.full(4, Special.NONE, np.int32)
        slots[3] = TEN if turn == 2 else Special.NONE
        arrived = np.array([FIVE, Special.END_DELEGATE, Special.PAD], np.int32)
        pcm = [side[turn, :samples].astype(np.float32) / 32_768 for side in (USER, MODEL)]
        frame = np.full((2, 2, 3), 51 / 255, np.float32) if turn == 3 else None
        writer.put(
            Entry(
                **{"turn": 40 + turn, "time": 0.0, "audio": pcm[0], "speech": pcm[1]},
                **{"arrived": arrived if turn == 1 else None, "frame": frame, "text": TEXT[turn]},
                **{"user_transcript": slots, "notes": []},
            )
        )
    assert writer.close([])
    return path


def test_a_record_is_a_conversation(tmp_path: pathlib.Path) -> None:
    got = read_record(_write(tmp_path / "talk"), TOKENIZER)
    silence = np.zeros(3_200, np.int16)
    np.testing.assert_array_equal(got.user, [*USER.reshape(-1), *silence])
    np.testing.assert_array_equal(got.model, [*silence, *MODEL.reshape(-1)])
    assert got.user_words is None, "the model's transcript is a guess"
    ((word, start, end),) = got.meta["user_transcript"]
    assert word == "ten" and start < end == pytest.approx(2 * 0.2 + 3.5 * 0.05)
    # Reply 1 plays from 0.4 s on. "six" comes after a pause, so it is written 2 micro-turns early.
    assert [one.text for one in got.model_words or ()] == ["five", "six"]
    times = [one[1:] for one in got.model_words or ()]
    np.testing.assert_allclose(times, [(0.4, 1.2), (1.2, 1.4 - 0.04)])
    arrival, end_of_it, cancel = got.events
    assert arrival == TextEvent(0.2, "arrived", "five")
    assert end_of_it == TextEvent(0.2, "arrived_end")
    assert cancel.kind == "cancel" and cancel.time == pytest.approx(1.6)
    (frame,) = got.frames
    assert frame.time == pytest.approx(0.6) and (frame.image == 51).all()
    assert got.meta["model"] == "abc" and got.meta["first_turn"] == 40 and not got.meta["problem"]
    stored = to_stored(got, TOKENIZER)
    assert stored["text"].tolist() == TEXT
    np.testing.assert_array_equal(stored["model"], MODEL.reshape(-1))
    assert isinstance((got.model_words or ())[0], Word)


def test_records_that_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"micro-turn 40: audio: got 1600 samples, wanted 3200"):
        read_record(_write(tmp_path / "short", samples=1_600), TOKENIZER)
    with pytest.raises(ValueError, match=r"empty: record: got no micro-turns, wanted at least one"):
        read_record(_write(tmp_path / "empty", turns=0), TOKENIZER)
