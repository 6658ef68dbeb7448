"""Commands in a wrong place: one clear message."""

import pathlib

import pytest

from experiments import converse


def test_converse_into_a_file_is_refused_before_anything_is_loaded(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "folder"):
        with pytest.raises(ValueError, match=r"--out: got '.*notes\.txt.*wanted a folder; choose"):
            converse.run("no.wav", "no model", str(out), 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"
