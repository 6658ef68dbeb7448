"""Records for the background model: whole ones, preceded ones, short ones, and their set."""

import pathlib

import numpy as np
import pytest

from interaction.data import reasoning_records, reasoning_tokens, records, timing
from interaction.data.delegation_sessions import TEXT_SLOTS
from interaction.data.stored_session import StoredSession
from interaction.types import Special

TURNS = 12


def _record(number: int, prefilled: int) -> StoredSession:
    """A record in which all values tell its number and the micro-turn."""
    turns = np.arange(TURNS) + 100 * number
    slots = np.arange(0, TURNS * TEXT_SLOTS, 5)
    reasoning = [(200 + number, False), (300 + number, True)] if prefilled else []
    record = {
        "user": np.repeat(turns, timing.TURN).astype(np.int16),
        "model": np.repeat(-turns, timing.TURN).astype(np.int16),
        "text": turns.astype(np.int32),
        "user_transcript": np.stack([turns, turns], axis=1).astype(np.int32),
        "meta": "{}",
    }
    record |= reasoning_tokens.arrival_arrays(
        [(int(slot), 1_000 * number + slot) for slot in slots]
    )
    return record | reasoning_tokens.reasoning_arrays(prefilled, reasoning)


def test_the_end_of_another_session_comes_first() -> None:
    mine, other = _record(1, 5), _record(2, 3)
    got = reasoning_records.preceded(mine, other)
    turns = [*range(205, 212), *range(100, 105)]
    assert got["text"].tolist() == got["user_transcript"][:, 1].tolist() == turns
    assert got["user"][:: timing.TURN].tolist() == turns
    assert got["model"][:: timing.TURN].tolist() == [-turn for turn in turns]
    assert got["prefilled"] == TURNS
    for name, leaf in mine.items():
        if name != "meta":
            assert (got[name].shape, got[name].dtype) == (leaf.shape, leaf.dtype)
        if name.startswith("reasoning"):
            np.testing.assert_array_equal(got[name], leaf)
    there = got["arrived"] != Special.PAD
    for slot, token in zip(got["arrived_slot"][there], got["arrived"][there], strict=True):
        number, old = divmod(int(token), 1_000)
        turn, place = divmod(int(slot), TEXT_SLOTS)
        assert place == old % TEXT_SLOTS
        assert turns[turn] == 100 * number + old // TEXT_SLOTS
    # Slots 20, 25, 30, 35, 40, 45 of the other's 12 micro-turns, and 0, 5, 10, 15 of its own.
    assert there.sum() == 10


def test_the_latest_arrivals_are_kept() -> None:
    mine, other = _record(1, 5), _record(2, 3)
    many = [
        (slot, 9)
        for slot in range(TURNS * TEXT_SLOTS - reasoning_tokens.ARRIVALS, TURNS * TEXT_SLOTS)
    ]
    got = reasoning_records.preceded(mine, other | reasoning_tokens.arrival_arrays(many))
    assert got["arrived"].tolist() == [9] * 28 + [1_000, 1_005, 1_010, 1_015]


def test_sessions_of_two_lengths_are_refused() -> None:
    other = _record(2, 3)
    with pytest.raises(ValueError, match="earlier: got 11 micro-turns, wanted 12"):
        reasoning_records.preceded(_record(1, 5), other | {"text": other["text"][1:]})


def test_a_short_record_has_an_imagined_request_after_the_last_micro_turns(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasoning_records, "SHORT_TURNS", 5)
    records.write(tmp_path / "sessions.arrayrecord", [_record(1, 9), _record(2, 3)])
    made = list(reasoning_records.short_records(tmp_path, 0, copies=8))
    turns = [list(range(104, 109))] * 8 + [list(range(200, 205))] * 8
    assert [one["text"].tolist() for one in made] == turns
    assert [int(one["prefilled"]) for one in made] == [5] * 8 + [3] * 8
    assert made[0]["user"][:: timing.TURN].tolist() == turns[0]
    # Slots 20, 25, 30 and 35 of the record with the late fork, and 0, 5, 10 and 15 of the other.
    assert made[0]["arrived"].tolist()[:5] == [1_020, 1_025, 1_030, 1_035, 0]
    assert made[0]["arrived_slot"].tolist()[:4] == [4, 9, 14, 19]
    assert made[8]["arrived_slot"].tolist()[:4] == [0, 5, 10, 15]
    assert len({one["reasoning"].tobytes() for one in made}) > 12
    for one in made:
        assert (one["reasoning"][0], one["reasoning_wanted"][0]) == (Special.DELEGATE, 0)
        last = np.count_nonzero(one["reasoning"]) - 1
        assert (one["reasoning"][last], one["reasoning_wanted"][last]) == (Special.SILENT, 1)
    read = [one["reasoning"][: np.argmax(one["reasoning_wanted"])] for one in made]
    corrected = [Special.UPDATE in one for one in read]
    assert any(corrected) and not all(corrected)
    again = list(reasoning_records.short_records(tmp_path, 0, copies=8))
    assert all(
        np.array_equal(a["reasoning"], b["reasoning"]) for a, b in zip(made, again, strict=True)
    )


def test_the_set_has_only_records_with_a_fork(tmp_path: pathlib.Path) -> None:
    path, out = tmp_path / "sessions", tmp_path / "delegation"
    all_ = [_record(number, 4 * (number % 2)) for number in range(1, 41)]
    records.write(path / "sessions-00000.arrayrecord", all_)
    assert reasoning_records.write_records(reasoning_records.whole_records(path, 0, 0.5), out) == 20
    made = list(reasoning_records.whole_records(out, seed=0, preceded_share=0.0))
    assert [int(one["reasoning"][0]) for one in made] == list(range(201, 241, 2))
    preceded = [one for one in made if one["prefilled"] == TURNS]
    assert 4 <= len(preceded) <= 16
    assert len({int(one["text"][0]) // 100 for one in preceded}) > 3, "by different sessions"
    again = reasoning_records.whole_records(path, seed=0, preceded_share=0.5)
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one["text"], other["text"])
    with pytest.raises(ValueError, match=r"out: got .* wanted a new folder"):
        reasoning_records.write_records(reasoning_records.whole_records(path, 0, 0.5), out)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_file_is_empty(
    count: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasoning_records, "_SHARD", 2)
    path, out = tmp_path / "sessions", tmp_path / "delegation"
    records.write(path / "sessions-00000.arrayrecord", [_record(i + 1, 4) for i in range(count)])
    made = reasoning_records.whole_records(path, 0, 1.0)
    assert reasoning_records.write_records(made, out) == count
    assert len(records.files(out)) == -(-count // 2)


def test_sessions_without_delegations_are_refused(tmp_path: pathlib.Path) -> None:
    records.write(tmp_path / "a" / "sessions.arrayrecord", [_record(1, 0)])
    made = reasoning_records.whole_records(tmp_path / "a", 0, 0.5)
    with pytest.raises(ValueError, match="sessions: got none with a delegation"):
        reasoning_records.write_records(made, tmp_path / "b")
    assert not (tmp_path / "b").exists()
