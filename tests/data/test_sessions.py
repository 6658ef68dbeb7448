import json
from pathlib import Path

import numpy as np
import pytest

from interaction.data import domain, make_session, records, sessions, timing, voices
from interaction.data.domain import asides
from interaction.data.scenarios import SCENARIOS
from interaction.data.stored_session import ARRAYS, StoredSession
from interaction.data.tokenizer import load_tokenizer
from interaction.types import Special

SPLITS = ("train", "heldout")
Made = dict[str, list[tuple[StoredSession, dict]]]


@pytest.fixture(scope="module")
def made() -> Made:
    """Records with their metadata, by split."""
    found = {}
    for split in SPLITS:
        made = [make_session((7, i), split) for i in range(24)]
        found[split] = [(record, json.loads(record["meta"])) for record in made]
    return found


def _request_words(event: dict) -> str:
    """The words of an event, without the opener of a request."""
    text = event["text"]
    for opener in asides.OPENERS:
        if text.startswith(opener + " ") and domain.complete_forms(text[len(opener) + 1 :]):
            return text[len(opener) + 1 :]
    return text


def test_no_held_out_item_is_in_training(made: Made) -> None:
    for _, meta in made["train"]:
        speakers = [meta["voice"], *(e["voice"] for e in meta["events"] if "voice" in e)]
        for voice in speakers:
            assert voice.split(":")[1].rsplit("+")[-1] not in voices.HELD_OUT_VARIANTS
        assert not any(event["held_out"] for event in meta["events"])
        for event in meta["events"]:
            if event["kind"] in ("side_speech", "background"):
                assert not asides.side_speech_held_out(event["text"]) or (
                    domain.complete_forms(event["text"])
                )
            for form in domain.complete_forms(_request_words(event)):
                text = _request_words(event)
                if form.intent.held_out and not form.intent.name.startswith("repeat"):
                    held = [
                        form.text(slots)
                        for slots in domain.all_slots(form.intent)
                        if domain.is_held_out(form, slots)
                    ]
                    assert text not in held


def test_background_speakers_are_named(made: Made) -> None:
    spoken = [e for _, meta in made["train"] for e in meta["events"] if e["kind"] == "background"]
    assert spoken and all("voice" in event for event in spoken)


def test_held_out_sessions_hold_held_out_items(made: Made) -> None:
    events = [event for _, meta in made["heldout"] for event in meta["events"]]
    assert any(event["held_out"] for event in events)
    for _, meta in made["heldout"]:
        assert meta["voice"].split(":")[1].rsplit("+")[-1] in voices.HELD_OUT_VARIANTS


@pytest.mark.parametrize("split", SPLITS)
def test_targets_follow_the_clock_rules(made: Made, split: str) -> None:
    tokenizer = load_tokenizer()
    for record, meta in made[split]:
        model = record["model"].reshape(meta["turns"], timing.TURN)
        speaking = np.zeros(meta["turns"], bool)
        events = meta["events"]
        assert events == sorted(events, key=lambda event: event["start_s"])
        for index, event in enumerate(events):
            if not event["answer"]:
                assert event["answer_turn"] == event["answer_end_turn"] == -1
                continue
            first, end = event["answer_turn"], event["answer_end_turn"]
            last = np.flatnonzero(model[first:end])[-1] + 1
            assert abs(event["answer_end_s"] - 0.2 * (first + 1) - last / 16_000) < 1e-3
            wait = 0.2 * (first + 1) - event["end_s"]
            assert 0.22 - 1e-4 <= wait < 0.42 + 1e-4
            assert np.abs(model[first]).max() > 0
            assert record["text"][first] >= Special.COUNT
            said = tokenizer.decode(record["text"][first:end])
            later = [e for e in events[index + 1 :] if e["kind"].startswith("interrupt")]
            cut = later and 0.2 * (end + 1) - later[0]["start_s"] < 0.44
            assert event["answer"].startswith(said)
            assert said == event["answer"] or cut or end == meta["turns"]
            assert not speaking[first:end].any()
            speaking[first:end] = True
        assert (record["text"][~speaking] == Special.SILENT).all()
        assert (record["text"][speaking] != Special.SILENT).all()
        assert not model[~speaking].any()


@pytest.mark.parametrize("scenario", [*SCENARIOS, *sessions.QUIET])
def test_a_session_shows_the_scenario_asked_for(scenario: str) -> None:
    kinds = {
        "plain": "request",
        "pause": "pause_request",
        "self_fix": "request",
        "stop": "interrupt_stop",
        "correction": "interrupt_correction",
        "follow_up": "request",
        "backchannel_alone": "backchannel",
        "background_over": "background",
    }
    record = make_session((11, 3), "heldout", scenario)
    events = json.loads(record["meta"])["events"]
    wanted = [event for event in events if event["kind"] == kinds.get(scenario, scenario)]
    assert wanted
    for event in wanted:
        if event["kind"] == "interrupt_stop":
            stop = timing.stop_turn(round(event["start_s"] * 16_000))
            cut = [e for e in events if e["answer_end_turn"] == stop]
            assert cut or not any(e["answer_turn"] <= stop < e["answer_end_turn"] for e in events)
        for start, end in event["pauses"]:
            assert 0.49 < end - start < 1.21
            assert not np.abs(record["model"][int(start * 16_000) : int(end * 16_000)]).any()
    if scenario == "silence":
        assert not record["user"].any()
    if scenario in sessions.QUIET:
        assert (record["text"] == Special.SILENT).all()
        assert (record["user_transcript"] == Special.NONE).all()


def test_the_user_transcript_has_all_words_of_the_user_and_no_others(made: Made) -> None:
    tokenizer = load_tokenizer()
    for record, meta in made["train"]:
        said = " ".join(e["text"] for e in meta["events"] if e["kind"] != "background").strip()
        user_transcript = tokenizer.decode(record["user_transcript"].ravel())
        assert said == user_transcript


def test_sessions_are_deterministic() -> None:
    first, second = make_session((5, 2)), make_session((5, 2))
    assert make_session((5, 3))["meta"] != first["meta"]
    assert first["meta"] == second["meta"]
    for name in ARRAYS:
        np.testing.assert_array_equal(first[name], second[name])


def test_nobody_speaks_in_the_tail_and_every_answer_ends() -> None:
    """In a session of 24 s the user has finished 0.6 s before 16 s."""
    for index in range(16):
        record = make_session((13, index), "heldout", turns=120, tail=40)
        for event in json.loads(record["meta"])["events"]:
            if event["kind"] not in sessions.QUIET:
                assert event["end_s"] < 15.4
            assert event["answer_end_turn"] < 120
        assert len(record["user"]) == 120 * timing.TURN and not record["model"][-2_000:].any()


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="scenario: got 'dance'"):
        make_session((0, 0), scenario="dance")
    with pytest.raises(ValueError, match="split: got 'dev'"):
        make_session((0, 0), split="dev")


def test_records_round_trip(tmp_path: Path, made: Made) -> None:
    path = tmp_path / "sessions-00000.arrayrecord"
    originals = [record for record, _ in made["train"][:3]]
    assert records.write(path, originals) == 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    source = records.source(tmp_path)
    assert len(source) == 3
    for index, original in enumerate(originals):
        found = records.arrays(source[index])
        assert set(found) == set(ARRAYS)
        for name, dtype in ARRAYS.items():
            assert found[name].dtype == dtype
            np.testing.assert_array_equal(found[name], original[name])
        assert records.read(path, index)[1] == json.loads(original["meta"])


def test_foreign_records_are_errors(tmp_path: Path) -> None:
    for data in (b"\xc1nonsense", b"\x01", b"\xc0", b"\x91\x01"):  # the last are no maps
        with pytest.raises(ValueError, match="no MessagePack"):
            records.decode(data)
    with pytest.raises(ValueError, match="wanted"):
        records.decode(records.encode({"user": np.zeros(3, np.int16)}))
    with pytest.raises(ValueError, match=r"arrayrecord"):
        records.files(tmp_path)
