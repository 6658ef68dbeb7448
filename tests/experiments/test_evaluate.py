"""The evaluation command: what would fail only at the end is refused at the beginning."""

import importlib.util
import pathlib
import types

import pytest
from absl import app

from experiments.evaluate import check_surroundings


def given(suite: str, records: object = "", asr_sessions: int = 0) -> types.SimpleNamespace:
    return types.SimpleNamespace(suite=suite, records=str(records), asr_sessions=asr_sessions)


def test_records_in_the_way_are_named(tmp_path: pathlib.Path) -> None:
    check_surroundings(given("delegation", tmp_path))
    (tmp_path / "00000.session").touch()
    with pytest.raises(app.UsageError, match=r"--records: got .* which has records"):
        check_surroundings(given("delegation", tmp_path))


def test_a_missing_recogniser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_surroundings(given("conversation"))
    with pytest.raises(app.UsageError, match="--asr_sessions: got 80 without a recogniser"):
        check_surroundings(given("conversation", asr_sessions=80))
